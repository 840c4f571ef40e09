// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/policy"
)

// explainRecord is the verdict on one packet, in JSON.
type explainRecord struct {
	Packet  string `json:"packet"`
	Verdict string `json:"verdict"`
	// List is that of Rule, allow or deny.
	List string `json:"list,omitempty"`
	// Rule is the one that decides; absent when it is the mode.
	Rule string `json:"rule,omitempty"`
	// Guard: the rule is the guard's. Of a live attachment Reason says so.
	Guard  bool   `json:"guard,omitempty"`
	Reason string `json:"reason"`
}

func explain(p *policy.Policy, guard *policy.Guard, packet policy.Packet) *explainRecord {
	e := p.Explain(guard, packet)
	r := &explainRecord{Packet: packet.String(), Verdict: e.Action.String(), Rule: e.Rule, Guard: e.Guard, Reason: e.Reason}
	if e.Rule != "" {
		r.List = e.List.String()
	}
	return r
}

func (a *app) explain() *cobra.Command {
	var byKey string
	cmd := &cobra.Command{
		Use:   "explain (ID | --key KEY) DESTINATION",
		Short: "Tell what would happen to a packet of an attachment, and why",
		Long: `Tell what would happen to a packet of an attachment: by the policy that is in force, the daemon's guard, and the addresses
that answers to DNS queries have opened. DESTINATION is HOST:PORT[/tcp|/udp], an address or a name (tcp unless said); an address
alone stands for a packet without ports, a name alone for whatever port. Nothing is sent, and no name is looked up.

Not considered: answers to connections that were opened from outside, and attachments around this one, which all must permit the
packet as well.`,
		Example: `  netfenced explain 0199c2a4-7a1e-7c51-b5a1-0d6ad1f4a1f2 10.0.9.7:443
  netfenced explain 0199c2a4-7a1e-7c51-b5a1-0d6ad1f4a1f2 pypi.org
  netfenced explain --key job-7 '[2001:db8::1]:53/udp' -o json`,
		Args: cobra.RangeArgs(1, 2),
	}
	cmd.Flags().StringVar(&byKey, "key", "", "key that the attachment was given")
	output := outputFlag(cmd)
	cmd.RunE = a.run(func(cmd *cobra.Command, args []string) error {
		if (len(args) == 1) == (byKey == "") {
			return usagef("explain: name one attachment, by its id or with --key, and one destination (see `netfenced list`)")
		}
		packet, err := policy.ParseDestination(args[len(args)-1])
		if err != nil {
			return usagef("explain: %v", err)
		}
		request := &netfencev1.ExplainRequest{Key: byKey, Destination: packet.Name, Port: uint32(packet.Flow.Port)}
		if len(args) == 2 {
			request.Id = args[0]
		}
		if packet.Name == "" {
			request.Destination = packet.Flow.Addr.String()
		}
		request.Protocol = netfencev1.Protocol_PROTOCOL_TCP
		if packet.Flow.Protocol == policy.UDP {
			request.Protocol = netfencev1.Protocol_PROTOCOL_UDP
		}
		return a.call(cmd.Context(), func(daemon netfencev1.DaemonServiceClient) error {
			response, err := daemon.Explain(cmd.Context(), request)
			if err != nil {
				return err
			}
			r := explainRecord{
				Packet: packet.String(), Verdict: policy.Deny.String(), List: response.GetList(), Rule: response.GetRule(), Reason: response.GetReason(),
			}
			if response.GetAllow() {
				r.Verdict = policy.Allow.String()
			}
			if *output == formatJSON {
				return printJSON(a.stdout, r)
			}
			_, err = fmt.Fprintf(a.stdout, "%s %s: %s\n", r.Packet, r.Verdict, r.Reason)
			return err
		})
	})
	return cmd
}
