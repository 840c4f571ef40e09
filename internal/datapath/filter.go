// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What every filter of ours has. The lowest number runs first, and among filters of
// the same number the newest.
const (
	filterPriority = 1
	filterName     = "netfence"
)

// Handles of ours are high: the kernel gives those who name none the lowest that is
// free. A filter that has to be put before others again takes its other handle, so
// that the new one is in place before the old one goes.
const (
	ownHandles  = 1 << 30
	otherHandle = 1 << 31
)

// place is where a filter is.
type place struct {
	side    string // "ingress" or "egress"
	ifindex int
	handle  uint32
	id      string // of the attachment
}

var filterParents = map[string]uint32{"ingress": netlink.HANDLE_MIN_INGRESS, "egress": netlink.HANDLE_MIN_EGRESS}

// filterHandle is unique among what is attached at a time.
func filterHandle(incarnation uint32) uint32 { return ownHandles | incarnation%ownHandles }

func (p place) String() string { return fmt.Sprintf("%s_%d_%d", p.side, p.ifindex, p.handle) }

// parsePlace reads String back; id is that of the attachment.
func parsePlace(s, id string) (place, error) {
	part := strings.Split(s, "_")
	if len(part) != 3 || filterParents[part[0]] == 0 {
		return place{}, fmt.Errorf("%q is no place of a filter", s)
	}
	ifindex, err := strconv.Atoi(part[1])
	if err != nil {
		return place{}, fmt.Errorf("place of a filter: %w", err)
	}
	handle, err := strconv.ParseUint(part[2], 10, 32)
	if err != nil {
		return place{}, fmt.Errorf("place of a filter: %w", err)
	}
	return place{side: part[0], ifindex: ifindex, handle: uint32(handle), id: id}, nil
}

func (p place) name() string { return filterName + " " + p.id }

// filter is a filter at p; fd is that of its program, -1 where it does not matter.
func (p place) filter(handle uint32, fd int) *netlink.BpfFilter {
	return &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: p.ifindex, Parent: filterParents[p.side], Handle: handle,
			Priority: filterPriority, Protocol: unix.ETH_P_ALL,
		},
		Fd: fd, Name: p.name(), DirectAction: true,
	}
}

// find returns the handle that the filter has, 0 if it is not there, and whether it
// runs before all others. Its program has to be of ours.
func (p place) find(o *ours) (handle uint32, first bool, err error) {
	handles, first, err := p.findAll(o)
	if len(handles) > 0 {
		handle = handles[0]
	}
	return handle, first, err
}

// findAll returns both handles, in the order in which they run, where a crash came
// before one had given way to the other.
func (p place) findAll(o *ours) (handles []uint32, first bool, err error) {
	filters, err := listFilters(p.ifindex, filterParents[p.side])
	if err != nil {
		return nil, false, err
	}
	for i, f := range filters {
		b, ok := f.(*netlink.BpfFilter)
		if !ok || b.Name != p.name() || b.Handle|otherHandle != p.handle|otherHandle || !b.DirectAction {
			continue
		}
		mine, err := o.has(ebpf.ProgramID(b.Id))
		if err != nil {
			return nil, false, err
		}
		if mine {
			handles, first = append(handles, b.Handle), first || i == 0
		}
	}
	return handles, first, nil
}

// listFilters lists, in the order in which they run, what a device without the
// discipline, or no device, has none of.
func listFilters(ifindex int, parent uint32) ([]netlink.Filter, error) {
	device := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: ifindex}}
	filters, err := netlink.FilterList(device, parent)
	for errors.Is(err, netlink.ErrDumpInterrupted) { // somebody was changing them
		filters, err = netlink.FilterList(device, parent)
	}
	switch {
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("list filters: %w", err)
	}
	return slices.DeleteFunc(filters, func(f netlink.Filter) bool {
		return f.Attrs().Handle == 0 // the kernel begins each priority with an entry of its own
	}), nil
}

// put attaches program before all others, or puts it in place of the one at p.
func (p place) put(o *ours, program *ebpf.Program) error {
	if err := ensureDiscipline(p.ifindex); err != nil {
		return err
	}
	old, first, err := p.find(o)
	if err != nil {
		return err
	}
	if old != 0 && first {
		return p.replace(old, program)
	}
	handle := p.handle
	if old != 0 {
		handle = old ^ otherHandle
	}
	if err := p.explain(netlink.FilterAdd(p.filter(handle, program.FD()))); err != nil {
		return err
	}
	return p.keep(o, handle)
}

// replace swaps the program of the filter with that handle, in one step.
func (p place) replace(handle uint32, program *ebpf.Program) error {
	return p.explain(netlink.FilterReplace(p.filter(handle, program.FD())))
}

// remove ends the filter, under both its handles. One that somebody else has
// removed, or that went with its device, is no error.
func (p place) remove(o *ours) error { return p.keep(o, 0) }

// keep removes the filter under other handles than that.
func (p place) keep(o *ours, handle uint32) error {
	handles, _, err := p.findAll(o)
	errs := []error{err}
	for _, h := range handles {
		if h == handle {
			continue
		}
		err := netlink.FilterDel(p.filter(h, -1))
		if !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove filter %s: %w", p, err)
	}
	return nil
}

// explain says what the kernel's errors mean here.
func (p place) explain(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("filter: %w: %w", ErrVanished, err)
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("filter at %s: %w (load the kernel module cls_bpf)", p.side, err)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EEXIST):
		return fmt.Errorf("filter at %s: %w (priority %d is another tool's: `tc filter show` on the device)", p.side, err, filterPriority)
	}
	return fmt.Errorf("filter at %s: %w", p.side, err)
}

// ensureDiscipline makes the discipline unless it is there. An "ingress" one takes
// filters for egress too, and runs them on what comes in.
func ensureDiscipline(ifindex int) error {
	discipline := &netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
		},
		QdiscType: "clsact",
	}
	err := netlink.QdiscAdd(discipline)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("clsact: %w: %w", ErrVanished, err)
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("clsact: %w (load the kernel module sch_ingress)", err)
	case !errors.Is(err, unix.EEXIST):
		return fmt.Errorf("clsact: %w", err)
	}
	there, err := netlink.QdiscList(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: ifindex}})
	if err != nil {
		return fmt.Errorf("clsact: list queueing disciplines: %w", vanished(err))
	}
	for _, q := range there {
		if q.Type() == "ingress" {
			return errors.New("the device has an ingress qdisc, where clsact has to be (remove it: tc qdisc del dev DEVICE ingress)")
		}
	}
	return nil
}
