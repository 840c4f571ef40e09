// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"github.com/spf13/cobra"

	"github.com/netfence/netfence/internal/config"
)

func (a *app) start() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "start",
		Short: "Run the daemon in the foreground",
		Long: `Run the daemon in the foreground; it logs to stderr. It adopts the attachments that an earlier daemon left in the
kernel. SIGTERM or SIGINT stops it and leaves every filter in force; ` + "`netfenced detach --all`" + ` removes them.

Every key of the configuration file is also an environment variable: control_plane.url is NETFENCE_CONTROL_PLANE_URL.`,
		Example: `  netfenced start
  netfenced start --config /etc/netfence/staging.yaml
  NETFENCE_CONTROL_PLANE_URL=dir:///srv/policies netfenced start`,
		Args: cobra.NoArgs,
		RunE: a.run(func(cmd *cobra.Command, _ []string) error {
			c, err := a.load(file)
			if err != nil {
				return err
			}
			return a.daemon.Start(cmd.Context(), c, a.daemon.Version, a.stderr)
		}),
	}
	configFlag(cmd, &file)
	return cmd
}

func configFlag(cmd *cobra.Command, file *string) {
	cmd.Flags().StringVar(file, "config", "", "configuration file (default "+config.DefaultPath+", if it exists)")
}
