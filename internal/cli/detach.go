// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"

	"github.com/spf13/cobra"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
)

func (a *app) detach() *cobra.Command {
	var (
		request netfencev1.DetachRequest
		file    string
	)
	cmd := &cobra.Command{
		Use:   "detach (--id ID | --key KEY | --all)",
		Short: "Remove filters",
		Long: `Remove the filter of one attachment, or all of them. It returns when the kernel has let go.

--all works without a daemon too: it then removes everything that the configuration's bpf_dir and run_dir hold.`,
		Example: `  netfenced detach --id 0199c2a4-7a1e-7c51-b5a1-0d6ad1f4a1f2
  netfenced detach --key job-7 --missing-ok
  netfenced detach --all`,
		Args: cobra.NoArgs,
	}
	flags := cmd.Flags()
	flags.StringVar(&request.Id, "id", "", "id of the attachment")
	flags.StringVar(&request.Key, "key", "", "key that the attachment was given")
	flags.BoolVar(&request.All, "all", false, "every attachment")
	flags.BoolVar(&request.MissingOk, "missing-ok", false, "an attachment that is not there is no error")
	configFlag(cmd, &file)
	cmd.RunE = a.run(func(cmd *cobra.Command, _ []string) error {
		selectors := 0
		for _, given := range []bool{request.GetId() != "", request.GetKey() != "", request.GetAll()} {
			if given {
				selectors++
			}
		}
		if selectors != 1 {
			return usagef("detach: say what with one of --id, --key and --all (see `netfenced detach --help`)")
		}
		if request.GetAll() {
			return a.detachAll(cmd, &request, file)
		}
		return a.call(cmd.Context(), func(daemon netfencev1.DaemonServiceClient) error {
			_, err := daemon.Detach(cmd.Context(), &request)
			return err
		})
	})
	return cmd
}

// detachAll asks the daemon, and does its work when there is none. The configuration that says where the pins are is
// also the one that says where the daemon listens.
func (a *app) detachAll(cmd *cobra.Command, request *netfencev1.DetachRequest, file string) error {
	c, err := a.load(file)
	if err != nil {
		return err
	}
	err = callAt(cmd.Context(), c.Socket, func(daemon netfencev1.DaemonServiceClient) error {
		_, err := daemon.Detach(cmd.Context(), request)
		return err
	})
	var down *notRunningError
	if errors.As(err, &down) {
		return a.daemon.Clear(c)
	}
	return err
}
