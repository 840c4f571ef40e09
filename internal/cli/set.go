// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"github.com/spf13/cobra"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
)

func (a *app) set() *cobra.Command {
	var byKey string
	var none bool
	var metadata map[string]string
	cmd := &cobra.Command{
		Use:   "set (ID | --key KEY) (--metadata k=v,k=v | --no-metadata)",
		Short: "Replace the metadata of an attachment",
		Long: `Replace the metadata of an attachment, whole. The control plane is told, and may decide on another policy by it; until it
does, what is in force stays. The command does not wait for that.`,
		Example: `  netfenced set 0199c2a4-7a1e-7c51-b5a1-0d6ad1f4a1f2 --metadata tenant=acme,env=prod
  netfenced set --key job-7 --no-metadata`,
		Args: cobra.MaximumNArgs(1),
	}
	cmd.Flags().StringVar(&byKey, "key", "", "key that the attachment was given")
	cmd.Flags().StringToStringVar(&metadata, "metadata", nil, "`k=v,k=v` pairs that policies match")
	cmd.Flags().BoolVar(&none, "no-metadata", false, "have none")
	cmd.RunE = a.run(func(cmd *cobra.Command, args []string) error {
		if (len(args) == 1) == (byKey != "") {
			return usagef("set: name one attachment, by its id or with --key (see `netfenced list`)")
		}
		if cmd.Flags().Changed("metadata") == none {
			return usagef("set: say either --metadata or --no-metadata (see `netfenced set --help`)")
		}
		request := &netfencev1.SetMetadataRequest{Key: byKey, Metadata: metadata}
		if len(args) == 1 {
			request.Id = args[0]
		}
		return a.call(cmd.Context(), func(daemon netfencev1.DaemonServiceClient) error {
			_, err := daemon.SetMetadata(cmd.Context(), request)
			return err
		})
	})
	return cmd
}
