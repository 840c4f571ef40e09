// SPDX-License-Identifier: Apache-2.0

// Command netfence-control is the control plane for many hosts that run netfenced.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/netfence/netfence/internal/fleet"
)

// Exit codes.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

// version is set by the release build (-ldflags "-X main.version=…").
var version string

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	running := false // a command's own function was reached
	root := command(&running, stdout, stderr)
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitDone
	}
	text := strings.ReplaceAll(strings.TrimSpace(err.Error()), "\n", "; ")
	if running {
		fmt.Fprintln(stderr, text)
		return exitFailed
	}
	fmt.Fprintf(stderr, "%s (see `%s --help`)\n", text, cmd.CommandPath())
	return exitUsage
}

func command(running *bool, stdout, stderr io.Writer) *cobra.Command {
	root := &cobra.Command{
		Use:   "netfence-control",
		Short: "Control plane for many hosts that run netfenced",
		Long: `netfence-control hands policies to any number of netfenced. They are files in a folder, or keys in etcd, which any number
of servers may share. Daemons come by gRPC, administrators by HTTP; each have credentials of their own.`,
		Example: `  netfence-control serve --config /etc/netfence/control.yaml
  netfence-control token --tokens-file /etc/netfence/daemons.tokens host-1 >host-1.token`,
		Version:       buildVersion(),
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			*running = true
			return cmd.Help()
		},
	}
	root.AddCommand(serve(running, stderr), token(running, stdout), printVersion(running, stdout))
	return root
}

func serve(running *bool, stderr io.Writer) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve daemons and administrators in the foreground",
		Long: `Serve daemons and administrators in the foreground; it logs to stderr. SIGTERM or SIGINT sends the daemons to another
server and stops. Nothing that is in force anywhere ends with it.

A file of one line is enough to begin with:

    policies: dir:///etc/netfence/policies`,
		Example: `  netfence-control serve
  netfence-control serve --config examples/fleet/control.yaml`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			*running = true
			c, err := fleet.Load(file)
			if err != nil {
				return err
			}
			return fleet.Run(cmd.Context(), c, buildVersion(), stderr)
		},
	}
	cmd.Flags().StringVar(&file, "config", fleet.DefaultPath, "configuration file")
	return cmd
}

func token(running *bool, stdout io.Writer) *cobra.Command {
	var file string
	var read bool
	cmd := &cobra.Command{
		Use:   "token NAME",
		Short: "Make a token, print it, and add its hash to a file",
		Long: `Make a token, print it, and add its hash to a file of tokens, which a running server reads again by itself. The name is a
daemon's daemon_id (` + "`netfenced status`" + ` shows it), or says who an administrator is. To take a token back, remove its line.`,
		Example: `  netfence-control token --tokens-file /etc/netfence/daemons.tokens host-1 >host-1.token
  netfence-control token --tokens-file /etc/netfence/admins.tokens --read prometheus >prometheus.token`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			*running = true
			made, err := fleet.NewToken(file, args[0], read)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(stdout, made)
			return err
		},
	}
	cmd.Flags().StringVar(&file, "tokens-file", "", "file that the token's hash is added to")
	cmd.Flags().BoolVar(&read, "read", false, "of an administrator who may look and change nothing")
	if err := cmd.MarkFlagRequired("tokens-file"); err != nil {
		panic(err) // of a flag that was just made
	}
	return cmd
}

func printVersion(running *bool, stdout io.Writer) *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the version of this program",
		Example: `  netfence-control version`,
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			*running = true
			_, err := fmt.Fprintf(stdout, "netfence-control %s (%s, %s/%s)\n", buildVersion(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}

// buildVersion falls back on what the go command recorded, which is "(devel)" outside of a version control checkout.
func buildVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}
