// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"fmt"
	"sync"
)

// places is who has which place of nf_interface_places, where programs find an
// interface without a hash. Who finds its place taken is found in nf_interfaces.
//
// A value of the map is not written in one step, and need not be: a place that is
// taken was zero before, and the programs read whose it is before they compare
// namespace and ifindex. An identity that is not that of the packet's device is
// followed by another ifindex or namespace, or by none.
type places struct {
	mu    sync.Mutex
	taken map[uint32]uint64 // identities
}

func (a *attachment) place() uint32 { return a.record.Ifindex % uint32(bpfLimitINTERFACE_PLACES) }

func (d *Datapath) takePlace(a *attachment) error {
	at := a.place()
	d.places.mu.Lock()
	defer d.places.mu.Unlock()
	if _, ok := d.places.taken[at]; ok {
		return nil // by whomever: it has what it needs
	}
	place := bpfInterfacePlace{Identity: identity(a), Netns: a.record.Scope, Ifindex: a.record.Ifindex}
	if err := d.bpf.NfInterfacePlaces.Put(at, &place); err != nil {
		return fmt.Errorf("place: %w", err)
	}
	if d.places.taken == nil {
		d.places.taken = make(map[uint32]uint64)
	}
	d.places.taken[at] = identity(a)
	return nil
}

func (d *Datapath) leavePlace(a *attachment) error {
	at := a.place()
	d.places.mu.Lock()
	defer d.places.mu.Unlock()
	if d.places.taken[at] != identity(a) {
		return nil
	}
	if err := d.bpf.NfInterfacePlaces.Put(at, &bpfInterfacePlace{}); err != nil {
		return fmt.Errorf("interface identity: place: %w", err)
	}
	delete(d.places.taken, at)
	return nil
}

// adoptPlaces reads who has a place, and frees those of attachments that are gone.
func (d *Datapath) adoptPlaces() error {
	all, err := readArray[bpfInterfacePlace](d.bpf.NfInterfacePlaces)
	if err != nil {
		return fmt.Errorf("read places of interfaces: %w", err)
	}
	d.places.taken = make(map[uint32]uint64)
	for i, place := range all {
		if place == (bpfInterfacePlace{}) {
			continue
		}
		at := uint32(i)
		if a := d.at(uint32(place.Identity)); a != nil && identity(a) == place.Identity {
			d.places.taken[at] = place.Identity
			continue
		}
		if err := d.bpf.NfInterfacePlaces.Put(at, &bpfInterfacePlace{}); err != nil {
			return fmt.Errorf("place of an interface: %w", err)
		}
	}
	return nil
}
