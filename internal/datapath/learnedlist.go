// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/netfence/netfence/policy"
)

// Learned is an address that an attachment may be reached at by name, for one
// set of ports. An address that names teach for different ports is listed for each.
type Learned struct {
	Addr      netip.Addr
	Names     []string       // the newest first
	Ports     []policy.Ports // none: every protocol
	Remaining time.Duration  // of the name that holds longest
}

// Learned lists what id has learned and what still holds, by address.
func (d *Datapath) Learned(id string) []Learned {
	d.mu.Lock()
	a := d.known[id]
	d.mu.Unlock()
	now, err := BootClock()
	if a == nil || err != nil {
		return nil
	}
	return a.memory.list(now)
}

// Held is an address that a name has opened.
type Held struct {
	Name  string // canonical, as in Lesson
	Addr  netip.Addr
	Proxy bool          // by a control plane's word
	TTL   time.Duration // what is left, without the grace
}

// Held lists, for each name that id has learned, the addresses that hold and are not in
// their grace yet. ErrNotAttached: there is no such attachment.
func (d *Datapath) Held(id string) ([]Held, error) {
	d.mu.Lock()
	a := d.known[id]
	d.mu.Unlock()
	if a == nil {
		return nil, ErrNotAttached
	}
	now, err := BootClock()
	if err != nil {
		return nil, err
	}
	return a.memory.held(now + d.limits.grace), nil
}

func (m *memory) held(since time.Duration) []Held {
	m.mu.RLock()
	defer m.mu.RUnlock()
	var list []Held
	for addr, gs := range m.addrs {
		for _, g := range gs {
			n, ok := m.names[g.name]
			if !ok || n.cut != 0 || g.deadline <= since {
				continue
			}
			one := Held{Name: n.text, Addr: addr.Unmap(), Proxy: n.proxy, TTL: g.deadline - since}
			if !slices.ContainsFunc(list, func(h Held) bool { return h.Name == one.Name && h.Addr == one.Addr && h.Proxy == one.Proxy }) {
				list = append(list, one)
			}
		}
	}
	return list
}

func (m *memory) list(now time.Duration) []Learned {
	m.mu.RLock()
	defer m.mu.RUnlock()
	var list []Learned
	for addr, gs := range m.addrs {
		byGrant := make(map[uint64][]uint32) // grants of the same ports
		ports := make(map[uint64][]policy.Ports)
		until := make(map[uint64]time.Duration)
		for _, g := range gs {
			n, ok := m.names[g.name]
			if !ok || n.cut != 0 || g.deadline <= now {
				continue
			}
			until[n.grant] = max(until[n.grant], g.deadline)
			if !slices.Contains(byGrant[n.grant], g.name) {
				byGrant[n.grant] = append(byGrant[n.grant], g.name)
			}
			if p, ok := portsOf(g); ok && !slices.Contains(ports[n.grant], p) {
				ports[n.grant] = append(ports[n.grant], p)
			}
		}
		for key, ids := range byGrant {
			list = append(list, Learned{Addr: addr, Names: m.texts(ids), Ports: ports[key], Remaining: until[key] - now})
		}
	}
	slices.SortFunc(list, func(a, b Learned) int {
		return cmp.Or(a.Addr.Compare(b.Addr), slices.Compare(a.Names, b.Names))
	})
	return list
}

// texts are names, the newest first, each once.
func (m *memory) texts(ids []uint32) []string {
	slices.SortFunc(ids, func(a, b uint32) int {
		return cmp.Or(cmp.Compare(m.names[b].learned, m.names[a].learned), cmp.Compare(b, a))
	})
	var texts []string
	for _, id := range ids {
		if text := m.names[id].text; !slices.Contains(texts, text) {
			texts = append(texts, text)
		}
	}
	return texts
}

// namesOf is under which names the attachment has learned addr, the newest
// first, those that no longer hold since a short time included.
func (d *Datapath) namesOf(identity uint64, addr netip.Addr) []string {
	a := d.at(uint32(identity))
	if a == nil || a.record.Incarnation != uint32(identity>>32) {
		return nil
	}
	m := &a.memory
	m.mu.RLock()
	defer m.mu.RUnlock()
	var ids []uint32
	for _, g := range m.addrs[canonicalAddr(addr)] {
		if _, ok := m.names[g.name]; ok && !slices.Contains(ids, g.name) {
			ids = append(ids, g.name)
		}
	}
	return m.texts(ids)
}
