// SPDX-License-Identifier: Apache-2.0

package wire

import (
	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/policy"
)

// Guard writes a guard for who asks what is in force; nil for one that says nothing.
func Guard(g *policy.Guard) *netfencev1.Guard {
	if g.Empty() {
		return nil
	}
	var w writer
	return &netfencev1.Guard{AllowCidrs: w.rules("allow_cidrs", g.Allow), DenyCidrs: w.rules("deny_cidrs", g.Deny)}
}

// GuardFrom reads a guard; that which is unset says nothing. The error is a *RefusedError.
func GuardFrom(m *netfencev1.Guard) (*policy.Guard, error) {
	var r reader
	if m != nil {
		r.unknown(m.ProtoReflect())
	}
	g := &policy.Guard{Allow: r.rules("allow_cidrs", m.GetAllowCidrs()), Deny: r.rules("deny_cidrs", m.GetDenyCidrs())}
	if _, err := r.result(); err != nil {
		return nil, err
	}
	return g, nil
}
