// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/internal/wire"
	"github.com/netfence/netfence/policy"
)

// showRecord is what -o json prints.
type showRecord struct {
	Attachment attachmentRecord  `json:"attachment"`
	Policy     *policy.Policy    `json:"policy"`
	Guard      *policy.Guard     `json:"guard"` // above the policy; empty when there is none
	OwnPolicy  bool              `json:"own_policy"`
	Applied    appliedRecord     `json:"applied"`
	Learned    []learnedRecord   `json:"learned"`
	Drops      map[string]uint64 `json:"drops"`
	// FlowsUnnoted counts packets that passed, but belong to connections that end when the learned address does.
	FlowsUnnoted uint64   `json:"flows_unnoted"`
	LastError    string   `json:"last_error"`
	Pending      bool     `json:"pending"`
	Warnings     []string `json:"warnings"`
	Key          string   `json:"key"`
}

// learnedRecord is an address that names have opened, for the same ports. Remaining is in whole seconds: "90s".
type learnedRecord struct {
	Address   string         `json:"address"`
	Names     []string       `json:"names"`
	Ports     []policy.Ports `json:"ports,omitempty"`
	Remaining string         `json:"remaining"`
}

type appliedRecord struct {
	Revision   string `json:"revision"`
	PolicyName string `json:"policy_name"`
	Audit      bool   `json:"audit"`
}

func (a *app) policyShow() *cobra.Command {
	var byKey string
	cmd := &cobra.Command{
		Use:   "show (ID | --key KEY)",
		Short: "Show the policy that is in force for an attachment",
		Long: `Show the policy that the kernel holds for an attachment with the daemon's guard above it, the addresses that answers to DNS
queries have opened and for how long, what was dropped and why, and what went wrong last. A policy that was refused is not shown: what was in force before
still is.`,
		Example: `  netfenced policy show 0199c2a4-7a1e-7c51-b5a1-0d6ad1f4a1f2
  netfenced policy show --key job-7 -o json`,
		Args: cobra.MaximumNArgs(1),
	}
	cmd.Flags().StringVar(&byKey, "key", "", "key that the attachment was given")
	output := outputFlag(cmd)
	cmd.RunE = a.run(func(cmd *cobra.Command, args []string) error {
		request := &netfencev1.GetRequest{Key: byKey}
		if len(args) == 1 {
			request.Id = args[0]
		}
		if (request.GetId() == "") == (request.GetKey() == "") {
			return usagef("policy show: name one attachment, by its id or with --key (see `netfenced list`)")
		}
		return a.call(cmd.Context(), func(daemon netfencev1.DaemonServiceClient) error {
			response, err := daemon.Get(cmd.Context(), request)
			if err != nil {
				return err
			}
			record, err := newShowRecord(response)
			if err != nil {
				return err
			}
			if *output == formatJSON {
				return printJSON(a.stdout, record)
			}
			return record.print(a.stdout)
		})
	})
	return cmd
}

func newShowRecord(r *netfencev1.GetResponse) (showRecord, error) {
	p, _, err := wire.PolicyFrom(r.GetPolicy())
	if err != nil {
		return showRecord{}, fmt.Errorf("the daemon's answer: %w", err)
	}
	guard, err := wire.GuardFrom(r.GetGuard())
	if err != nil {
		return showRecord{}, fmt.Errorf("the daemon's answer: guard: %w", err)
	}
	record := showRecord{
		Attachment: newAttachmentRecord(r.GetAttachment()),
		Policy:     p,
		Guard:      guard,
		Applied: appliedRecord{
			Revision: r.GetApplied().GetRevision(), PolicyName: r.GetApplied().GetPolicyName(), Audit: r.GetApplied().GetAudit(),
		},
		OwnPolicy:    r.GetOwnPolicy(),
		Learned:      []learnedRecord{},
		Drops:        orNone(r.GetDrops()),
		FlowsUnnoted: r.GetFlowsUnnoted(),
		LastError:    r.GetLastError(),
		Pending:      r.GetPending(),
		Warnings:     orEmpty(r.GetWarnings()),
		Key:          r.GetKey(),
	}
	for _, l := range r.GetLearned() {
		ports, err := wire.PortsFrom(l.GetPorts())
		if err != nil {
			return showRecord{}, fmt.Errorf("the daemon's answer: learned %s: %w", l.GetAddress(), err)
		}
		record.Learned = append(record.Learned, learnedRecord{
			Address: l.GetAddress(), Names: orEmpty(l.GetNames()), Ports: ports, Remaining: fmt.Sprintf("%ds", l.GetRemaining().GetSeconds()),
		})
	}
	return record, nil
}

// print is for people: what the policy is, then what it did.
func (r showRecord) print(w io.Writer) error {
	rows := [][]string{
		{"id", r.Attachment.ID},
		{"target", r.Attachment.Target + " (" + r.Attachment.kind() + ")"},
	}
	add := func(name, text string) {
		if text != "" {
			rows = append(rows, []string{name, text})
		}
	}
	add("key", r.Key)
	add("metadata", pairs(r.Attachment.Metadata))
	if r.Pending {
		add("mode", r.Policy.Mode.String()+" (pending: no policy yet)")
	} else {
		add("mode", r.Policy.Mode.String())
	}
	if r.Policy.Audit {
		add("audit", "what would be denied passes, and is counted")
	}
	if r.OwnPolicy {
		add("policy", "given when it was attached; no control plane decides")
	}
	add("revision", r.Applied.Revision)
	for _, rule := range r.Guard.Allow {
		add("guard allow", ruleText(rule))
	}
	for _, rule := range r.Guard.Deny {
		add("guard deny", ruleText(rule))
	}
	for _, rule := range r.Policy.Allow {
		add("allow", ruleText(rule))
	}
	for _, rule := range r.Policy.Deny {
		add("deny", ruleText(rule))
	}
	if r.Policy.Replies == policy.RepliesDeny {
		add("replies", r.Policy.Replies.String())
	}
	for _, ports := range r.Policy.RepliesUDP {
		add("replies udp", ports.String())
	}
	for _, source := range r.Policy.Source {
		add("source", source.String())
	}
	if r.Policy.Loopback != policy.LoopbackOwn {
		add("loopback", r.Policy.Loopback.String())
	}
	add("dns", r.Policy.DNS.Mode.String())
	add("dns address", r.Attachment.DNSAddress)
	for _, rule := range r.Policy.DNS.Allow {
		add("dns allow", domainText(rule))
	}
	for _, rule := range r.Policy.DNS.Deny {
		add("dns deny", rule.String())
	}
	for _, server := range r.Policy.DNS.Upstreams {
		add("dns upstream", server.String())
	}
	for _, zone := range r.Policy.DNS.Forward {
		add("dns forward", zone.Zone+" to "+joined(zone.To))
	}
	if r.Policy.DNS.RefuseWith != policy.RefuseDefault {
		add("dns refuses", "with "+r.Policy.DNS.RefuseWith.String())
	}
	for _, l := range r.Learned {
		add("learned", l.text())
	}
	if r.Policy.Mode == policy.ModeBlockAll || r.Policy.DNS.Mode != policy.DNSDisabled {
		add("answered", fmt.Sprintf("%d queries", r.Attachment.DNSQueriesAllowed))
		if n := r.Attachment.DNSQueriesWouldDeny; n > 0 {
			add("  in audit", fmt.Sprintf("%d of them would be refused", n))
		}
		add("refused", fmt.Sprintf("%d queries", r.Attachment.DNSQueriesBlocked))
	}
	add("allowed", fmt.Sprintf("%d packets", r.Attachment.PacketsAllowed))
	if r.FlowsUnnoted > 0 {
		add("  unnoted", fmt.Sprintf("%d: limits.flows was reached, so their connections end when the learned address does", r.FlowsUnnoted))
	}
	add("blocked", fmt.Sprintf("%d packets", r.Attachment.PacketsBlocked))
	rows = append(rows, byReason(r.Drops)...)
	if len(r.Attachment.WouldDeny) > 0 {
		add("in audit", "allowed packets that would be blocked")
		rows = append(rows, byReason(r.Attachment.WouldDeny)...)
	}
	for _, warning := range r.Warnings {
		add("warning", warning)
	}
	add("last error", r.LastError)
	return printTable(w, rows)
}

func (l learnedRecord) text() string {
	text := l.Address + " (" + strings.Join(l.Names, ", ") + ")"
	if len(l.Ports) > 0 {
		text += " ports " + joined(l.Ports)
	}
	return text + ", " + l.Remaining + " left"
}

func domainText(r policy.DomainRule) string {
	if r.Private {
		return r.String() + ", private answers too"
	}
	return r.String()
}

func ruleText(r policy.Rule) string {
	text := r.String()
	if r.TTL != 0 {
		text += ", ttl " + r.TTL.String()
	}
	if !r.ExpiresAt.IsZero() {
		text += ", until " + r.ExpiresAt.Local().Format(time.RFC3339)
	}
	return text
}

func joined[T fmt.Stringer](list []T) string {
	texts := make([]string, len(list))
	for i, v := range list {
		texts[i] = v.String()
	}
	return strings.Join(texts, ", ")
}
