// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"

	"github.com/cilium/ebpf"

	"github.com/netfence/netfence/internal/target"
)

// maxOnLink bounds the prefixes of one interface that the kernel knows to be on
// its link. Neighbours in further ones need a rule.
const maxOnLink = 16

// incarnationBits are those of a bpfOnlinkKey in front of the prefix.
const incarnationBits = 32

// onLink keeps nf_onlink as the addresses of the attached interfaces are. What it
// could not write stays closed: neighbour discovery to those addresses needs a rule.
type onLink struct {
	table *ebpf.Map
	links *target.OnLink
	log   *slog.Logger

	// mu guards held: what the table has, by ifindex.
	mu   sync.Mutex
	held map[int]*heldPrefixes
}

type heldPrefixes struct {
	incarnation uint32
	prefixes    []netip.Prefix // sorted
}

// newOnLink adopts what the table has, and makes it true.
func newOnLink(d *Datapath) (*onLink, error) {
	links, err := target.NewOnLink()
	if err != nil {
		return nil, err
	}
	o := &onLink{table: d.bpf.NfOnlink, links: links, log: d.log, held: make(map[int]*heldPrefixes)}
	if err := o.adopt(d.known); err != nil {
		return nil, errors.Join(fmt.Errorf("prefixes on links: %w", err), links.Close())
	}
	return o, nil
}

// run keeps the table true until close.
func (o *onLink) run() {
	if err := o.links.Run(o.refresh); err != nil {
		o.log.Warn("prefixes on links are not followed any more: neighbour discovery stays as it is until a restart", "err", err)
	}
}

// adopt removes what is of no attachment, or of one whose prefixes are others by now.
func (o *onLink) adopt(known map[string]*attachment) error {
	byIncarnation := make(map[uint32]*heldPrefixes)
	for _, a := range known {
		if isInterface(a.record) && a.record.Scope == o.links.NetnsCookie() {
			h := &heldPrefixes{incarnation: a.record.Incarnation}
			o.held[int(a.record.Ifindex)], byIncarnation[h.incarnation] = h, h
		}
	}
	var key bpfOnlinkKey
	var value uint8
	var stray []bpfOnlinkKey
	for entries := o.table.Iterate(); ; {
		if !entries.Next(&key, &value) {
			if err := entries.Err(); err != nil {
				return err
			}
			break
		}
		h := byIncarnation[key.Incarnation]
		if h == nil {
			stray = append(stray, key)
			continue
		}
		h.prefixes = append(h.prefixes, key.prefix())
	}
	for _, key := range stray {
		if err := o.table.Delete(&key); err != nil {
			return err
		}
	}
	for ifindex, h := range o.held {
		slices.SortFunc(h.prefixes, netip.Prefix.Compare)
		o.write(ifindex, h)
	}
	return nil
}

// enter makes neighbour discovery possible for a new attachment.
func (o *onLink) enter(r bpfAttachment) {
	if o == nil || r.Scope != o.links.NetnsCookie() {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	h := &heldPrefixes{incarnation: r.Incarnation}
	o.held[int(r.Ifindex)] = h
	o.write(int(r.Ifindex), h)
}

// leave removes what enter and refresh have written for the attachment.
func (o *onLink) leave(r bpfAttachment) error {
	if o == nil {
		return nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	h := o.held[int(r.Ifindex)]
	if h == nil || h.incarnation != r.Incarnation {
		return nil
	}
	for len(h.prefixes) > 0 {
		last := len(h.prefixes) - 1
		if err := o.remove(h.incarnation, h.prefixes[last]); err != nil {
			return fmt.Errorf("prefixes on the link: %w", err)
		}
		h.prefixes = h.prefixes[:last]
	}
	delete(o.held, int(r.Ifindex))
	return nil
}

// refresh looks at the interface again, if it is attached.
func (o *onLink) refresh(ifindex int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if h := o.held[ifindex]; h != nil {
		o.write(ifindex, h)
	}
}

// write makes the table say of the interface what is so. o.mu is held.
func (o *onLink) write(ifindex int, h *heldPrefixes) {
	want := o.links.Prefixes(ifindex)
	if len(want) > maxOnLink {
		o.log.Warn("neighbours of an interface need rules: too many prefixes", "ifindex", ifindex, "prefixes", len(want), "kept", maxOnLink)
		want = want[:maxOnLink]
	}
	var errs []error
	held := h.prefixes[:0:0]
	for _, p := range h.prefixes {
		if _, still := slices.BinarySearchFunc(want, p, netip.Prefix.Compare); still {
			held = append(held, p)
		} else if err := o.remove(h.incarnation, p); err != nil {
			errs = append(errs, err)
			held = append(held, p) // the next look tries again
		}
	}
	for _, p := range want {
		if slices.Contains(held, p) {
			continue
		}
		key := onLinkKey(h.incarnation, p)
		if err := o.table.Put(&key, uint8(1)); err != nil {
			errs = append(errs, fmt.Errorf("add %s: %w", p, err))
			continue
		}
		held = append(held, p)
	}
	slices.SortFunc(held, netip.Prefix.Compare)
	h.prefixes = held
	if err := errors.Join(errs...); err != nil {
		o.log.Warn("prefixes on the link of an interface not as they are", "ifindex", ifindex, "err", err)
	}
}

func (o *onLink) remove(incarnation uint32, p netip.Prefix) error {
	key := onLinkKey(incarnation, p)
	if err := o.table.Delete(&key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("remove %s: %w", p, err)
	}
	return nil
}

func (o *onLink) close() error {
	if o == nil {
		return nil
	}
	return o.links.Close()
}

func onLinkKey(incarnation uint32, p netip.Prefix) bpfOnlinkKey {
	key := bpfOnlinkKey{Length: incarnationBits + uint32(p.Bits()), Incarnation: incarnation}
	key.Address.Word = networkWords(p.Addr())
	return key
}

func (k bpfOnlinkKey) prefix() netip.Prefix {
	return netip.PrefixFrom(addrFromWords(k.Address.Word), int(k.Length)-incarnationBits)
}
