// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"sync"

	"github.com/netfence/netfence/internal/target"
)

// nesting knows which attached cgroups are in which.
type nesting struct {
	mu      sync.RWMutex
	cgroups map[uint64]*attachment // by id, of what is attached
}

// adopt adds what the kernel holds. What is around it is not known before Attach
// has named its path.
func (n *nesting) adopt(a *attachment) {
	if isInterface(a.record) {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cgroups == nil {
		n.cgroups = make(map[uint64]*attachment)
	}
	n.cgroups[a.record.Scope] = a
}

// enter adds a, or learns what is around it. A cgroup never moves, and has its
// id for itself during a boot.
func (n *nesting) enter(a *attachment, t target.Target) error {
	if isInterface(a.record) {
		return nil
	}
	around, err := target.CgroupsAround(t)
	if err != nil {
		return vanished(err)
	}
	n.adopt(a)
	n.mu.Lock()
	defer n.mu.Unlock()
	a.around, a.placed = around, true
	return nil
}

func (n *nesting) leave(a *attachment) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cgroups[a.record.Scope] == a {
		delete(n.cgroups, a.record.Scope)
	}
}

// outward returns a and the attachments around it, the innermost first. None:
// that is not known.
func (n *nesting) outward(a *attachment) []*attachment {
	if isInterface(a.record) {
		return []*attachment{a}
	}
	n.mu.RLock()
	defer n.mu.RUnlock()
	if !a.placed {
		return nil
	}
	chain := []*attachment{a}
	for _, id := range a.around {
		if outer := n.cgroups[id]; outer != nil {
			chain = append(chain, outer)
		}
	}
	return chain
}
