// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"strconv"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/emptypb"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
)

// statusRecord is what -o json prints.
type statusRecord struct {
	Version             string            `json:"version"`
	DaemonID            string            `json:"daemon_id"`
	Hostname            string            `json:"hostname"`
	ControlPlaneState   string            `json:"control_plane_state"`
	ControlPlaneAddress string            `json:"control_plane_address"`
	AttachmentCount     int32             `json:"attachment_count"`
	PacketsAllowed      uint64            `json:"packets_allowed"`
	PacketsBlocked      uint64            `json:"packets_blocked"`
	DNSQueriesAllowed   uint64            `json:"dns_queries_allowed"`
	DNSQueriesBlocked   uint64            `json:"dns_queries_blocked"`
	Drops               map[string]uint64 `json:"drops"`
	WouldDeny           map[string]uint64 `json:"would_deny"`
	DNSQueriesWouldDeny uint64            `json:"dns_queries_would_deny"`
	Problems            []string          `json:"problems"`
}

func (a *app) status() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show how the daemon is",
		Long: `Show the daemon's identity, how it stands with its control plane, what all attachments together have let pass and
dropped, and what needs attention: refused commands, broken policy files, attachments in trouble.`,
		Example: `  netfenced status
  netfenced status -o json`,
		Args: cobra.NoArgs,
	}
	output := outputFlag(cmd)
	cmd.RunE = a.run(func(cmd *cobra.Command, _ []string) error {
		return a.call(cmd.Context(), func(daemon netfencev1.DaemonServiceClient) error {
			s, err := daemon.GetStatus(cmd.Context(), &emptypb.Empty{})
			if err != nil {
				return err
			}
			counters := s.GetCounters()
			return a.printStatus(statusRecord{
				Version:             s.GetVersion(),
				DaemonID:            s.GetDaemonId(),
				Hostname:            s.GetHostname(),
				ControlPlaneState:   lower(s.GetControlPlaneState().String(), "CONNECTION_STATE_"),
				ControlPlaneAddress: s.GetControlPlaneAddress(),
				AttachmentCount:     s.GetAttachmentCount(),
				PacketsAllowed:      counters.GetPacketsAllowed(),
				PacketsBlocked:      counters.GetPacketsBlocked(),
				DNSQueriesAllowed:   counters.GetDnsQueriesAllowed(),
				DNSQueriesBlocked:   counters.GetDnsQueriesBlocked(),
				Drops:               orNone(counters.GetDrops()),
				WouldDeny:           orNone(counters.GetWouldDeny()),
				DNSQueriesWouldDeny: counters.GetDnsQueriesWouldDeny(),
				Problems:            orEmpty(s.GetProblems()),
			}, *output)
		})
	})
	return cmd
}

func (a *app) printStatus(r statusRecord, output format) error {
	if output == formatJSON {
		return printJSON(a.stdout, r)
	}
	rows := [][]string{
		{"daemon", r.DaemonID},
		{"host", r.Hostname},
		{"version", r.Version},
		{"control plane", r.ControlPlaneAddress + " (" + r.ControlPlaneState + ")"},
		{"attachments", strconv.Itoa(int(r.AttachmentCount))},
		{"answered", fmt.Sprintf("%d queries", r.DNSQueriesAllowed)},
	}
	if r.DNSQueriesWouldDeny > 0 {
		rows = append(rows, []string{"  in audit", fmt.Sprintf("%d of them would be refused", r.DNSQueriesWouldDeny)})
	}
	rows = append(rows,
		[]string{"refused", fmt.Sprintf("%d queries", r.DNSQueriesBlocked)},
		[]string{"allowed", fmt.Sprintf("%d packets", r.PacketsAllowed)},
		[]string{"blocked", fmt.Sprintf("%d packets", r.PacketsBlocked)})
	rows = append(rows, byReason(r.Drops)...)
	if len(r.WouldDeny) > 0 {
		rows = append(rows, []string{"in audit", "allowed packets that would be blocked"})
		rows = append(rows, byReason(r.WouldDeny)...)
	}
	for _, problem := range r.Problems {
		rows = append(rows, []string{"problem", problem})
	}
	return printTable(a.stdout, rows)
}
