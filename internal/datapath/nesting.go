// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"sync"

	"github.com/vishvananda/netlink"

	"github.com/netfence/netfence/internal/target"
)

// nesting knows which attached cgroups are in which, and which attached interfaces
// lead to the network namespaces that their processes are in.
type nesting struct {
	mu         sync.RWMutex
	cgroups    map[uint64]*attachment       // by id, of what is attached
	interfaces map[int]map[*attachment]bool // by nsid, as attachment.peer
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
		return n.lead(a)
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

// lead learns which namespace the other end of an interface is in.
func (n *nesting) lead(a *attachment) error {
	link, err := netlink.LinkByIndex(int(a.record.Ifindex))
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return fmt.Errorf("%w: %w", ErrVanished, err)
	}
	if err != nil {
		return fmt.Errorf("interface %d: %w", a.record.Ifindex, err)
	}
	peer := -1
	if kind := link.Type(); kind == "veth" || kind == "netkit" {
		peer = link.Attrs().NetNsID
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.interfaces[a.peer], a)
	a.peer = peer
	if n.interfaces == nil {
		n.interfaces = make(map[int]map[*attachment]bool)
	}
	if n.interfaces[peer] == nil {
		n.interfaces[peer] = make(map[*attachment]bool)
	}
	n.interfaces[peer][a] = true
	return nil
}

// Behind is told which other network namespaces the processes of the cgroup attached
// at index are in, by their ids in this one (rtnetlink(7), RTM_GETNSID): a name that
// they ask for concerns the interfaces that lead there as well.
func (d *Datapath) Behind(index uint32, nsids []int) {
	a := d.at(index)
	if a == nil {
		return
	}
	d.nesting.mu.Lock()
	defer d.nesting.mu.Unlock()
	a.behind = nsids
}

func (n *nesting) leave(a *attachment) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.interfaces[a.peer], a)
	if n.cgroups[a.record.Scope] == a {
		delete(n.cgroups, a.record.Scope)
	}
}

// outward returns a and the attachments around it, the innermost first, then the
// interfaces that its processes are behind. None: that is not known.
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
	for _, nsid := range a.behind {
		for outer := range n.interfaces[nsid] {
			chain = append(chain, outer)
		}
	}
	return chain
}
