// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"
)

// versionRecord is what -o json prints.
type versionRecord struct {
	Version   string `json:"version"`
	GoVersion string `json:"go_version"`
	Platform  string `json:"platform"`
}

func (a *app) version() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version of this program",
		Long:  "Print the version of this program. The daemon's own is in `netfenced status`.",
		Example: `  netfenced version
  netfenced version -o json`,
		Args: cobra.NoArgs,
	}
	output := outputFlag(cmd)
	cmd.RunE = a.run(func(*cobra.Command, []string) error {
		r := versionRecord{Version: a.daemon.Version, GoVersion: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
		if *output == formatJSON {
			return printJSON(a.stdout, r)
		}
		_, err := fmt.Fprintf(a.stdout, "netfenced %s (%s, %s)\n", r.Version, r.GoVersion, r.Platform)
		return err
	})
	return cmd
}
