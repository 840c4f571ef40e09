// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
)

// eventRecord is one line of -o json: one event, or how many were lost.
type eventRecord struct {
	Time        *time.Time      `json:"time,omitempty"`
	ID          string          `json:"id,omitempty"`
	DeniedFlow  *flowRecord     `json:"denied_flow,omitempty"`
	DNSDecision *decisionRecord `json:"dns_decision,omitempty"`
	Incident    *incidentRecord `json:"incident,omitempty"`
	Lost        uint64          `json:"lost,omitempty"`
}

type flowRecord struct {
	Address       string   `json:"address"`
	Port          uint32   `json:"port"`
	IPProtocol    uint32   `json:"ip_protocol"`
	Reason        string   `json:"reason"`
	Names         []string `json:"names"`
	SourceAddress string   `json:"source_address"`
	SourcePort    uint32   `json:"source_port"`
	Length        uint32   `json:"length"`
	Rule          string   `json:"rule"`
	WouldDeny     bool     `json:"would_deny"`
}

type decisionRecord struct {
	Domain    string   `json:"domain"`
	QueryType string   `json:"query_type"`
	Allowed   bool     `json:"allowed"`
	Reason    string   `json:"reason"`
	Learned   []string `json:"learned"`
	WouldDeny bool     `json:"would_deny"`
}

type incidentRecord struct {
	Kind    string `json:"kind"`
	Message string `json:"message"`
}

func (a *app) events() *cobra.Command {
	var (
		follow  bool
		request netfencev1.WatchRequest
	)
	cmd := &cobra.Command{
		Use:   "events --follow [--id ID]...",
		Short: "Show what is dropped and which names are decided",
		Long: `Show dropped packets, decided DNS queries and incidents as they happen, until interrupted; of a policy in audit, what
would be dropped or refused. What an attachment causes
beyond its rate (events.rate), or faster than it is printed, is not shown but counted as lost; the counters that list and
policy show print miss nothing.`,
		Example: `  netfenced events --follow
  netfenced events --follow --id 0199c2a4-7a1e-7c51-b5a1-0d6ad1f4a1f2
  netfenced events --follow -o json | jq -c .denied_flow
  netfenced events --follow -o json | jq -c 'select(.denied_flow.would_deny or .dns_decision.would_deny)'`,
		Args: cobra.NoArgs,
	}
	flags := cmd.Flags()
	flags.BoolVar(&follow, "follow", false, "print events as they happen; the past is not kept")
	flags.StringSliceVar(&request.Ids, "id", nil, "attachments to show (default all, those to come included)")
	output := outputFlag(cmd)
	cmd.RunE = a.run(func(cmd *cobra.Command, _ []string) error {
		if !follow {
			return usagef("events: only --follow exists for now: past events are not kept (see `netfenced events --help`)")
		}
		return a.call(cmd.Context(), func(daemon netfencev1.DaemonServiceClient) error {
			return a.follow(cmd.Context(), daemon, &request, *output)
		})
	})
	return cmd
}

// follow prints until ctx is done, which is how it is meant to end.
func (a *app) follow(ctx context.Context, daemon netfencev1.DaemonServiceClient, request *netfencev1.WatchRequest, output format) error {
	stream, err := daemon.Watch(ctx, request)
	for err == nil {
		var batch *netfencev1.EventBatch
		if batch, err = stream.Recv(); err == nil {
			err = printBatch(a.stdout, batch, output)
		}
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func printBatch(w io.Writer, batch *netfencev1.EventBatch, output format) error {
	var records []eventRecord
	for _, e := range batch.GetEvents() {
		records = append(records, newEventRecord(e))
	}
	if batch.GetLost() > 0 {
		records = append(records, eventRecord{Lost: batch.GetLost()})
	}
	for _, r := range records {
		if output == formatJSON {
			encoder := json.NewEncoder(w)
			encoder.SetEscapeHTML(false)
			if err := encoder.Encode(r); err != nil {
				return err
			}
		} else if _, err := fmt.Fprintln(w, r.line()); err != nil {
			return err
		}
	}
	return nil
}

func newEventRecord(e *netfencev1.Event) eventRecord {
	at := e.GetTime().AsTime()
	r := eventRecord{Time: &at, ID: e.GetId()}
	switch e := e.GetEvent().(type) {
	case *netfencev1.Event_DeniedFlow:
		f := e.DeniedFlow
		r.DeniedFlow = &flowRecord{
			Address: f.GetAddress(), Port: f.GetPort(), IPProtocol: f.GetIpProtocol(), Reason: f.GetReason(), Names: orEmpty(f.GetNames()),
			SourceAddress: f.GetSourceAddress(), SourcePort: f.GetSourcePort(), Length: f.GetLength(),
			Rule: f.GetRule(), WouldDeny: f.GetAudit(),
		}
	case *netfencev1.Event_DnsDecision:
		d := e.DnsDecision
		r.DNSDecision = &decisionRecord{
			Domain: d.GetDomain(), QueryType: d.GetQueryType(), Allowed: d.GetAllowed(), Reason: d.GetReason(), Learned: orEmpty(d.GetLearned()),
			WouldDeny: d.GetAudit(),
		}
	case *netfencev1.Event_Incident:
		r.Incident = &incidentRecord{Kind: e.Incident.GetKind(), Message: e.Incident.GetMessage()}
	}
	return r
}

// line is for people. A workload chooses the names that it asks for, so nothing of it reaches the terminal as a control
// character.
func (r eventRecord) line() string {
	if r.Lost > 0 {
		return fmt.Sprintf("%d events lost", r.Lost)
	}
	columns := []string{r.Time.Local().Format("2006-01-02T15:04:05.000Z07:00"), r.ID}
	switch {
	case r.DeniedFlow != nil:
		verdict := "dropped"
		if r.DeniedFlow.WouldDeny {
			verdict = "would drop"
		}
		columns = append(columns, verdict, r.DeniedFlow.text())
	case r.DNSDecision != nil:
		columns = append(columns, r.DNSDecision.text())
	case r.Incident != nil:
		columns = append(columns, "incident", r.Incident.Kind+":", r.Incident.Message)
	default:
		columns = append(columns, "an event that this version does not know")
	}
	return printable(strings.Join(columns, "  "))
}

func (f *flowRecord) text() string {
	if f.Address == "" {
		return fmt.Sprintf("a frame of %d bytes  %s", f.Length, f.why())
	}
	parts := []string{protocolName(f.IPProtocol)}
	if f.SourceAddress != "" {
		parts = append(parts, endpoint(f.SourceAddress, f.SourcePort))
	}
	parts = append(parts, "to", endpoint(f.Address, f.Port))
	if len(f.Names) > 0 {
		parts = append(parts, "("+strings.Join(f.Names, ", ")+")")
	}
	return strings.Join(append(parts, " "+f.why()), " ")
}

func (f *flowRecord) why() string {
	if f.Rule == "" {
		return f.Reason
	}
	return f.Reason + ": " + f.Rule
}

func (d *decisionRecord) text() string {
	verdict := "refused"
	switch {
	case d.WouldDeny:
		verdict = "would refuse"
	case d.Allowed:
		verdict = "allowed"
	}
	text := verdict + "  " + d.QueryType + " " + d.Domain
	if len(d.Learned) > 0 {
		text += " is " + strings.Join(d.Learned, ", ")
	}
	if d.Reason != "" {
		text += "  " + d.Reason
	}
	return text
}

func endpoint(address string, port uint32) string {
	if port == 0 {
		return address
	}
	return net.JoinHostPort(address, strconv.FormatUint(uint64(port), 10))
}

func protocolName(number uint32) string {
	switch number {
	case 1, 58:
		return "icmp"
	case 6:
		return "tcp"
	case 17:
		return "udp"
	}
	return fmt.Sprintf("protocol %d", number)
}

func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, s)
}
