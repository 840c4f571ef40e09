// SPDX-License-Identifier: Apache-2.0

// Package cli is the command line of netfenced. Apart from start, and detach --all without a daemon, every command is
// a client of the daemon's unix socket or works on files alone.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/netfence/netfence/internal/config"
)

// Exit codes of every command.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

// Daemon is what the command line itself does not do: run the daemon, and clean up in its place.
type Daemon struct {
	Version string
	// Start runs the daemon until ctx is done.
	Start func(ctx context.Context, c *config.Config, version string, logTo io.Writer) error
	// Clear ends every attachment while no daemon runs.
	Clear func(*config.Config) error
}

// Run executes the command that args name (without the program's name) and returns the exit code. An error is one line
// on stderr.
func Run(ctx context.Context, args []string, stdout, stderr io.Writer, daemon Daemon) int {
	a := &app{daemon: daemon, stdout: stdout, stderr: stderr, environ: os.Environ()}
	root := a.root()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitDone
	}
	if text := oneLine(message(a.refusal(cmd, args, err))); text != "" && !errors.Is(err, errReported) {
		if cmd.Name() == "run" {
			text = "netfenced run: " + strings.TrimPrefix(text, "run: ")
		}
		fmt.Fprintln(stderr, text)
	}
	return a.exitCode(cmd, err)
}

// app is one execution.
type app struct {
	daemon         Daemon
	stdout, stderr io.Writer
	environ        []string

	socket  string // --socket
	running bool   // a command's own function was reached
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "netfenced",
		Short: "Egress firewall for containers, microVMs and process groups",
		Long: `netfenced filters what commands, containers, microVMs and process groups send. run does so for one command, without
setup. The daemon attaches a policy to a network interface or a cgroup; it is enforced in the kernel, whether or not the
daemon runs.`,
		Example: `  sudo netfenced run --allow pypi.org:443 --allow '*.pythonhosted.org:443' -- pip download requests
  netfenced start
  netfenced attach --interface veth0 --metadata tenant=acme
  netfenced list`,
		Version:       a.daemon.Version,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE: a.run(func(cmd *cobra.Command, _ []string) error {
			return cmd.Help()
		}),
	}
	root.PersistentFlags().StringVar(&a.socket, "socket", "",
		"daemon's unix socket (NETFENCE_SOCKET; default "+config.DefaultSocket+")")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usagef("%s: %v (see `%s --help`)", strings.TrimPrefix(cmd.CommandPath(), "netfenced "), err, cmd.CommandPath())
	})
	root.AddCommand(a.start(), a.attach(), a.detach(), a.list(), a.status(), a.set(), a.runCommand(), a.policy(), a.explain(), a.events(), a.version())
	return root
}

// refusal puts what to do next behind what cobra says of arguments that it refuses.
func (a *app) refusal(cmd *cobra.Command, args []string, err error) error {
	var usage *usageError
	if a.running || errors.As(err, &usage) {
		return err
	}
	text := err.Error()
	cmd.SuggestionsMinimumDistance = 2
	if name, _, isCommand := strings.Cut(strings.TrimPrefix(text, `unknown command "`), `" for "`); isCommand {
		switch near := cmd.SuggestionsFor(name); {
		case !cmd.HasSubCommands():
			text = fmt.Sprintf("%s: takes no argument, and got %q", strings.TrimPrefix(cmd.CommandPath(), "netfenced "), name)
		case len(near) > 0:
			text += "; did you mean " + near[0] + "?"
		}
	}
	return usagef("%s (see `%s --help`)", text, cmd.CommandPath())
}

// run marks the point from which an error is the command's and not its caller's.
func (a *app) run(f func(*cobra.Command, []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		a.running = true
		return f(cmd, args)
	}
}

// load reads the configuration; --socket outranks it.
func (a *app) load(path string) (*config.Config, error) {
	c, err := config.Load(path, a.environ)
	if err != nil {
		return nil, err
	}
	if a.socket != "" {
		c.Socket = a.socket
	}
	return c, nil
}
