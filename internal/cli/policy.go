// SPDX-License-Identifier: Apache-2.0

package cli

import "github.com/spf13/cobra"

func (a *app) policy() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "Check policy files, and show what is in force",
		Example: `  netfenced policy check /etc/netfence/policies/*.yaml
  netfenced policy show 0199c2a4-7a1e-7c51-b5a1-0d6ad1f4a1f2`,
		Args: cobra.NoArgs,
		RunE: a.run(func(cmd *cobra.Command, _ []string) error {
			return cmd.Help()
		}),
	}
	cmd.AddCommand(a.policyCheck(), a.policyShow())
	return cmd
}
