// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
)

// listRecord is what -o json prints. TotalCount counts all pages.
type listRecord struct {
	Attachments []attachmentRecord `json:"attachments"`
	TotalCount  int32              `json:"total_count"`
}

// maxPage is the largest page that the daemon gives.
const maxPage = 1000

func (a *app) list() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List what is filtered",
		Long: `List attachments with the packets that passed, those that were dropped and why, and those that passed only because
the policy is in audit and why; the oldest first: the first hundred, or all of them.`,
		Example: `  netfenced list
  netfenced list --all -o json
  netfenced list --all -o json | jq '.attachments[] | select(.would_deny != {})'`,
		Args: cobra.NoArgs,
	}
	cmd.Flags().BoolVar(&all, "all", false, "every page")
	output := outputFlag(cmd)
	cmd.RunE = a.run(func(cmd *cobra.Command, _ []string) error {
		return a.call(cmd.Context(), func(daemon netfencev1.DaemonServiceClient) error {
			record, err := fetch(cmd.Context(), daemon, all)
			if err != nil {
				return err
			}
			if *output == formatJSON {
				return printJSON(a.stdout, record)
			}
			return a.printList(record)
		})
	})
	return cmd
}

func fetch(ctx context.Context, daemon netfencev1.DaemonServiceClient, all bool) (listRecord, error) {
	record := listRecord{Attachments: []attachmentRecord{}}
	request := &netfencev1.ListRequest{}
	if all {
		request.PageSize = maxPage
	}
	for {
		page, err := daemon.List(ctx, request)
		if err != nil {
			return listRecord{}, err
		}
		for _, info := range page.GetAttachments() {
			record.Attachments = append(record.Attachments, newAttachmentRecord(info))
		}
		record.TotalCount = page.GetTotalCount()
		request.PageToken = page.GetNextPageToken()
		if !all || request.PageToken == "" {
			return record, nil
		}
	}
}

func (a *app) printList(record listRecord) error {
	rows := [][]string{{"ID", "TARGET", "TYPE", "MODE", "ALLOWED", "BLOCKED", "REASONS", "WOULD DENY", "METADATA"}}
	for _, r := range record.Attachments {
		rows = append(rows, []string{
			r.ID, r.Target, r.kind(), r.Mode,
			strconv.FormatUint(r.PacketsAllowed, 10), strconv.FormatUint(r.PacketsBlocked, 10),
			cmp.Or(pairs(r.Drops), "-"), cmp.Or(pairs(r.WouldDeny), "-"), cmp.Or(pairs(r.Metadata), "-"),
		})
	}
	if err := printTable(a.stdout, rows); err != nil {
		return err
	}
	if left := int(record.TotalCount) - len(record.Attachments); left > 0 {
		_, err := fmt.Fprintf(a.stderr, "%d more (see them with --all)\n", left)
		return err
	}
	return nil
}

// pairs prints metadata as --metadata takes it, and counters likewise, in the order of the names.
func pairs[V string | uint64](values map[string]V) string {
	var list []string
	for _, name := range slices.Sorted(maps.Keys(values)) {
		list = append(list, fmt.Sprint(name, "=", values[name]))
	}
	return strings.Join(list, ",")
}
