// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/netfence/netfence/internal/run"
)

// codeError is an error with an exit code of its own.
type codeError struct {
	code int
	err  error // nil: there is nothing to say
}

func (e *codeError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *codeError) Unwrap() error { return e.err }

func (a *app) runCommand() *cobra.Command {
	var (
		o    run.Options
		file string
	)
	cmd := &cobra.Command{
		Use:   "run [flags] -- COMMAND [ARG]...",
		Short: "Run one command that can reach only what it may",
		Long: `Run a command in a cgroup of its own that is filtered before its first instruction. Without --allow and --policy it
reaches nothing. It needs no daemon and no setup; where a daemon runs, that one does the filtering.

The command runs as whoever called sudo, with no_new_privs and without capabilities, in namespaces where cgroups are
read-only and the sockets of resolvers, container engines and session services are hidden. When it ends, so does all
that it has started. What was denied is summed up on stderr. With --audit everything passes, and what would have been
denied is summed up.

The exit code is the command's, or 128 and the number of the signal that ended it; 125 if Netfence failed, 126 if the
command can not be executed, 127 if it is not found.`,
		Example: `  sudo netfenced run --allow pypi.org:443 --allow '*.pythonhosted.org:443' -- pip install requests
  sudo netfenced run --policy agent.yaml --report denied.json -- ./agent
  sudo netfenced run --audit -- ./agent
  sudo netfenced run -- make test`,
		Args: cobra.ArbitraryArgs,
	}
	flags := cmd.Flags()
	flags.SetInterspersed(false) // what follows the command is the command's
	flags.StringArrayVar(&o.Allow, "allow", nil, "`ADDRESS|DOMAIN[:PORT]` that may be reached, as in a policy file; repeatable")
	flags.StringArrayVar(&o.Deny, "deny", nil, "`ADDRESS|DOMAIN[:PORT]` that may not, within what may; repeatable")
	flags.StringVar(&o.PolicyFile, "policy", "", "policy `FILE` (default an empty allowlist)")
	flags.StringArrayVar(&o.Upstreams, "dns-upstream", nil, "DNS server `ADDRESS[:PORT]` to ask; repeatable (default the configuration's)")
	flags.BoolVar(&o.Audit, "audit", false, "let everything pass, and sum up what would be denied")
	flags.StringVar(&o.Report, "report", "", "`FILE` for what was denied, as JSON")
	flags.StringVar(&o.User, "user", "", "`NAME|UID[:GROUP]` to run as (default who called sudo)")
	flags.BoolVar(&o.AsRoot, "as-root", false, "run as root, though confined, when called by sudo")
	configFlag(cmd, &file)
	cmd.RunE = a.run(func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return usagef("run: name a command (see `netfenced run --help`)")
		}
		if o.User != "" && o.AsRoot {
			return usagef("run: --user and --as-root exclude each other (see `netfenced run --help`)")
		}
		var err error
		if o.Config, err = a.load(file); err != nil {
			return err
		}
		o.Command, o.Environ, o.Stderr = args, a.environ, a.stderr
		code, err := run.Run(cmd.Context(), o)
		if code == 0 && err == nil {
			return nil
		}
		return &codeError{code, err}
	})
	return cmd
}

// exitCode of a command that failed. Those of run are told apart from its command's.
func (a *app) exitCode(cmd *cobra.Command, err error) int {
	var coded *codeError
	var usage *usageError
	switch {
	case errors.As(err, &coded):
		return coded.code
	case cmd.Name() == "run":
		return run.CodeFailed
	// What fails before a command's own function runs is cobra refusing the arguments.
	case !a.running || errors.As(err, &usage):
		return exitUsage
	}
	return exitFailed
}
