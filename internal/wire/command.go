// SPDX-License-Identifier: Apache-2.0

package wire

import (
	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/policy"
)

// Change is what a command does to the policy of an attachment.
type Change struct {
	// Edit returns the changed policy and leaves its argument as it is.
	Edit func(*policy.Policy) (*policy.Policy, error)
	// Use is the named policy that the attachment is to have, instead of Edit; nil: none.
	Use *Ref
	// Whole: the command replaces everything, so that it is the first policy of a pending attachment, too.
	Whole    bool
	Warnings []string // what was adjusted, at most 33 lines
}

// ChangeFrom reads a command that changes the policy of one attachment: all but SyncAck and GoAway, which are about the
// stream, and PutPolicy and DeletePolicy, which are NamedFrom's and NameFrom's. The error is a *RefusedError whose paths begin at the command: "bulk_update.allow_cidrs[3].cidr".
func ChangeFrom(cmd *netfencev1.ControlCommand) (Change, error) {
	var r reader
	r.unknown(cmd.ProtoReflect())
	change := r.change(cmd)
	warnings, err := r.result()
	if err != nil {
		return Change{}, err
	}
	change.Warnings = warnings
	return change, nil
}

func (r *reader) change(cmd *netfencev1.ControlCommand) Change {
	field := commandField(cmd)
	switch command := cmd.GetCommand().(type) {
	case *netfencev1.ControlCommand_BulkUpdate:
		return r.replace(field, command.BulkUpdate)
	case *netfencev1.ControlCommand_SubscribedAck:
		if command.SubscribedAck.GetUsePolicy() != nil {
			r.enter(field, -1)
			return r.useAlone(command.SubscribedAck)
		}
		return r.replace(field, command.SubscribedAck)
	case *netfencev1.ControlCommand_UsePolicy:
		return r.use(field, command.UsePolicy)
	case *netfencev1.ControlCommand_SetMode:
		r.enter(field, -1)
		mode := readEnum(r, "mode", modes, command.SetMode.GetMode())
		return edit(func(p *policy.Policy) *policy.Policy { return p.WithMode(mode) })
	case *netfencev1.ControlCommand_SetDnsMode:
		r.enter(field, -1)
		mode := readEnum(r, "mode", dnsModes, command.SetDnsMode.GetMode())
		return edit(func(p *policy.Policy) *policy.Policy { return p.WithDNSMode(mode) })
	case *netfencev1.ControlCommand_AllowCidr:
		r.enter(field, -1)
		rule := r.rule(command.AllowCidr)
		return edit(func(p *policy.Policy) *policy.Policy { return p.WithAllow(rule) })
	case *netfencev1.ControlCommand_DenyCidr:
		r.enter(field, -1)
		rule := r.rule(command.DenyCidr)
		return edit(func(p *policy.Policy) *policy.Policy { return p.WithDeny(rule) })
	case *netfencev1.ControlCommand_RemoveCidr:
		prefix := r.prefix(field, command.RemoveCidr)
		return edit(func(p *policy.Policy) *policy.Policy { return p.WithoutPrefix(prefix) })
	case *netfencev1.ControlCommand_AllowDomain:
		r.enter(field, -1)
		rule := r.domain(command.AllowDomain, policy.Allow)
		return edit(func(p *policy.Policy) *policy.Policy { return p.WithAllowDomain(rule) })
	case *netfencev1.ControlCommand_DenyDomain:
		r.enter(field, -1)
		rule := r.domain(command.DenyDomain, policy.Deny)
		return edit(func(p *policy.Policy) *policy.Policy { return p.WithDenyDomain(rule) })
	case *netfencev1.ControlCommand_RemoveDomain:
		name := r.name(field, command.RemoveDomain)
		return edit(func(p *policy.Policy) *policy.Policy { return p.WithoutDomain(name) })
	default:
		r.refuse("command", field, "a command that changes a policy and that this version knows")
	}
	return Change{}
}

func (r *reader) replace(field string, m Whole) Change {
	r.enter(field, -1)
	p := r.whole(m)
	r.leave()
	change := edit(func(*policy.Policy) *policy.Policy { return p })
	change.Whole = true
	return change
}

func edit(f func(*policy.Policy) *policy.Policy) Change {
	return Change{Edit: func(p *policy.Policy) (*policy.Policy, error) { return f(p), nil }}
}

// commandField is the name of the command that is set, or "" for none that this build knows.
func commandField(cmd *netfencev1.ControlCommand) string {
	m := cmd.ProtoReflect()
	if field := m.WhichOneof(m.Descriptor().Oneofs().ByName("command")); field != nil {
		return string(field.Name())
	}
	return ""
}
