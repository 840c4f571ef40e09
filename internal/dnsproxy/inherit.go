// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/miekg/dns"

	"github.com/netfence/netfence/internal/datapath"
	"github.com/netfence/netfence/policy"
)

// inheritTries is how often names are decided anew because a policy changed
// meanwhile.
const inheritTries = 10

// Inherit has the attachment at an index learn what another has learned, for a
// workload that was copied with the answers that it remembers: as if it asked now,
// by its own rules, those of the attachments around it and the guard, and had the
// answer. Nothing holds for longer than it does there, but for its way here. Names
// that a control plane has decided, or would, are left out: they are asked for
// anew. With an error, some may have been learned.
func (s *Server) Inherit(ctx context.Context, index uint32, held []datapath.Held) error {
	held = slices.DeleteFunc(slices.Clone(held), func(h datapath.Held) bool { return h.Proxy })
	slices.SortFunc(held, func(a, b datapath.Held) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.TTL.Truncate(time.Second), b.TTL.Truncate(time.Second)), a.Addr.Compare(b.Addr))
	})
	for len(held) > 0 {
		first := held[0]
		var addrs []netip.Addr
		for _, h := range held {
			if h.Name != first.Name || h.TTL.Truncate(time.Second) != first.TTL.Truncate(time.Second) {
				break
			}
			addrs = append(addrs, h.Addr)
		}
		held = held[len(addrs):]
		if err := s.inherit(ctx, index, first.Name, addrs, first.TTL.Truncate(time.Second)); err != nil {
			return fmt.Errorf("inherit %s: %w", first.Name, err)
		}
	}
	return nil
}

// inherit is for the addresses of a name that hold equally long.
func (s *Server) inherit(ctx context.Context, index uint32, name string, addrs []netip.Addr, ttl time.Duration) error {
	q := &query{Question: dns.Question{Name: dns.Fqdn(name), Qtype: dns.TypeA, Qclass: dns.ClassINET}, name: name, plain: true}
	var err error
	for range inheritTries {
		chain := s.Kernel.Chain(index)
		if slices.ContainsFunc(chain, func(m datapath.Member) bool { return m.Names.Mode == policy.DNSProxy }) {
			return nil
		}
		r := s.decide(ctx, q, chain)
		if r.outcome != allowed || r.local {
			return nil
		}
		permitted := slices.DeleteFunc(slices.Clone(addrs), func(addr netip.Addr) bool { return !s.permits(r, addr) })
		var lessons []datapath.Lesson
		for i := range r.voices {
			v := &r.voices[i]
			if learned := s.lesson(v, permitted); len(learned) > 0 && !v.Names.Audit {
				lessons = append(lessons, datapath.Lesson{Member: v.Member, Name: name, Grant: v.grant, Addrs: learned, TTL: ttl})
			}
		}
		if len(lessons) == 0 {
			return nil
		}
		if err = s.Kernel.Learn(lessons, true); !errors.Is(err, datapath.ErrStale) {
			return err
		}
	}
	return err
}
