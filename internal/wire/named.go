// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/policy"
)

// What a control plane may call its policies, in bytes.
const (
	MaxName     = 256
	MaxRevision = 256
)

// Ref names a policy of a control plane's. Without a name it is the revision of a policy that is one attachment's alone.
type Ref struct {
	Name     string
	Revision string // in a command: empty means whichever is held
}

// Named is a policy that is sent once, for many attachments.
type Named struct {
	Ref
	Policy *policy.Policy
}

// PolicyRef is how a reference goes out.
func PolicyRef(ref Ref) *netfencev1.PolicyRef {
	return &netfencev1.PolicyRef{Name: ref.Name, Revision: ref.Revision}
}

// NamedPolicy writes a named policy for a peer, as BulkUpdate does; the peer must know the feature NamedPolicies.
func NamedPolicy(n Named, to Peer) (*netfencev1.NamedPolicy, error) {
	if !to.Has(NamedPolicies) {
		return nil, &UnsupportedError{Field: "put_policy", Feature: NamedPolicies}
	}
	update, err := BulkUpdate(n.Policy, to)
	if err != nil {
		return nil, err
	}
	return &netfencev1.NamedPolicy{Name: n.Name, Revision: n.Revision, Policy: update}, nil
}

// NamedFrom reads the named policy of a command that puts one. The error is a *RefusedError, as ChangeFrom's.
func NamedFrom(cmd *netfencev1.ControlCommand) (Named, []string, error) {
	var r reader
	r.unknown(cmd.ProtoReflect())
	r.noID(cmd)
	m := cmd.GetPutPolicy()
	r.enter("put_policy", -1)
	n := Named{Ref: r.ref(m.GetName(), m.GetRevision())}
	if m.GetPolicy() == nil {
		r.refuse("policy", "", "a policy")
	} else {
		r.enter("policy", -1)
		n.Policy = r.whole(m.GetPolicy())
	}
	warnings, err := r.result()
	if err != nil {
		return Named{}, nil, err
	}
	return n, warnings, nil
}

// NameFrom reads the name of a command that deletes a named policy.
func NameFrom(cmd *netfencev1.ControlCommand) (string, error) {
	var r reader
	r.unknown(cmd.ProtoReflect())
	r.noID(cmd)
	name := r.policyName("delete_policy", cmd.GetDeletePolicy())
	_, err := r.result()
	return name, err
}

// noID: a named policy belongs to no attachment, and an id would mean that the sender believes otherwise.
func (r *reader) noID(cmd *netfencev1.ControlCommand) {
	if cmd.GetId() != "" {
		r.refuse("id", cmd.GetId(), "none: a named policy is of no attachment")
	}
}

func (r *reader) use(field string, m *netfencev1.PolicyRef) Change {
	r.enter(field, -1)
	defer r.leave()
	ref := r.ref(m.GetName(), m.GetRevision())
	return Change{Use: &ref, Whole: true}
}

// useAlone reads an acknowledgement that says no more than which named policy it is.
func (r *reader) useAlone(ack *netfencev1.SubscribedAck) Change {
	if !proto.Equal(ack, &netfencev1.SubscribedAck{UsePolicy: ack.GetUsePolicy()}) {
		r.refuse("use_policy", ack.GetUsePolicy().GetName(), "to be the only field, or unset")
	}
	return r.use("use_policy", ack.GetUsePolicy())
}

func (r *reader) ref(name, revision string) Ref {
	if len(revision) > MaxRevision {
		r.refuse("revision", revision, fmt.Sprintf("at most %d bytes", MaxRevision))
	}
	return Ref{Name: r.policyName("name", name), Revision: revision}
}

func (r *reader) policyName(field, name string) string {
	if name == "" || len(name) > MaxName {
		r.refuse(field, name, fmt.Sprintf("a policy's name, 1 to %d bytes", MaxName))
	}
	return name
}
