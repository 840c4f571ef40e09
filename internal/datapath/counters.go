// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"fmt"
	"maps"
	"slices"

	"github.com/cilium/ebpf"
)

// ReasonDNS is why a query is dropped that cannot be answered in its resolver's place.
const ReasonDNS = "dns"

const maxReasons = uint32(bpfLimitMAX_REASONS)

// reasons are the names of enum reason, for users. What is dropped before an
// attachment is known counts for none.
var reasons = map[bpfReason]string{
	bpfReasonREASON_MODE:              "block-all",
	bpfReasonREASON_NO_RULE:           "no-rule",
	bpfReasonREASON_RULE:              "deny-rule",
	bpfReasonREASON_LOOPBACK:          "loopback",
	bpfReasonREASON_UNATTACHED:        "unattached",
	bpfReasonREASON_NO_TABLE:          "no-table",
	bpfReasonREASON_NOT_IP:            "not-ip",
	bpfReasonREASON_VLAN_DEPTH:        "vlan-depth",
	bpfReasonREASON_TRUNCATED:         "truncated",
	bpfReasonREASON_MALFORMED:         "malformed",
	bpfReasonREASON_SOURCE_ROUTE:      "source-route",
	bpfReasonREASON_ROUTING_HEADER:    "routing-header",
	bpfReasonREASON_EXTENSION_HEADERS: "extension-headers",
	bpfReasonREASON_NAME_PROTOCOL:     "name-protocol",
	bpfReasonREASON_DNS:               ReasonDNS,
	bpfReasonREASON_GUARD:             "guard",
	bpfReasonREASON_SOURCE:            "source",
	bpfReasonREASON_PROTECTED:         "protected",
}

// Reasons are all for which a packet is dropped, as Counters has them.
func Reasons() []string { return slices.Sorted(maps.Values(reasons)) }

// Counters of an attachment since it was attached. Connections and datagrams
// that are refused with EPERM before there is a packet count as one dropped
// packet of no bytes.
type Counters struct {
	PacketsAllowed uint64
	BytesAllowed   uint64
	PacketsDropped uint64
	BytesDropped   uint64
	Drops          map[string]uint64 // packets by reason; only what happened
	// Packets that audit let pass, counted as allowed, and what would have dropped them.
	PacketsWouldDeny uint64
	WouldDeny        map[string]uint64
	// FlowsUnnoted counts packets to learned addresses that passed but whose flow
	// found no room: it ends with the grant.
	FlowsUnnoted uint64
}

// Counters reads the counters of id.
func (d *Datapath) Counters(id string) (Counters, error) {
	d.mu.Lock()
	a := d.known[id]
	d.mu.Unlock()
	if a == nil {
		return Counters{}, fmt.Errorf("counters of %s: %w", id, ErrNotAttached)
	}
	c, err := d.readCounters(a.index)
	if err != nil {
		return Counters{}, fmt.Errorf("counters of %s: %w", id, err)
	}
	return c, nil
}

func (d *Datapath) readCounters(index uint32) (Counters, error) {
	var perCPU []bpfCounters
	if err := d.bpf.NfCounters.Lookup(index, &perCPU); err != nil {
		return Counters{}, err
	}
	c := sumCPUs(perCPU)
	if err := d.bpf.NfDrops.Lookup(index*maxReasons+uint32(bpfLimitUNNOTED_FLOWS), &c.FlowsUnnoted); err != nil {
		return Counters{}, err
	}
	var err error
	if c.PacketsDropped > 0 {
		if c.Drops, _, err = byReason(d.bpf.NfDrops, index); err != nil {
			return Counters{}, err
		}
	}
	c.WouldDeny, c.PacketsWouldDeny, err = byReason(d.bpf.NfAudited, index)
	return c, err
}

// byReason reads what is not zero.
func byReason(m *ebpf.Map, index uint32) (counts map[string]uint64, sum uint64, err error) {
	for reason, name := range reasons {
		var n uint64
		if err := m.Lookup(index*maxReasons+uint32(reason), &n); err != nil {
			return nil, 0, err
		}
		if n == 0 {
			continue
		}
		if counts == nil {
			counts = make(map[string]uint64)
		}
		counts[name] = n
		sum += n
	}
	return counts, sum, nil
}

func sumCPUs(perCPU []bpfCounters) (c Counters) {
	for _, cpu := range perCPU {
		c.PacketsAllowed += cpu.AllowedPackets
		c.BytesAllowed += cpu.AllowedBytes
		c.PacketsDropped += cpu.DroppedPackets
		c.BytesDropped += cpu.DroppedBytes
	}
	return c
}

// addDrops adds n, which is an entry of nf_drops.
func (c *Counters) addDrops(at uint32, n uint64) {
	if at == uint32(bpfLimitUNNOTED_FLOWS) {
		c.FlowsUnnoted += n
		return
	}
	if name, ok := reasons[bpfReason(at)]; ok {
		addTo(&c.Drops, map[string]uint64{name: n})
	}
}

// addAudited adds n, which is an entry of nf_audited.
func (c *Counters) addAudited(at uint32, n uint64) {
	if name, ok := reasons[bpfReason(at)]; ok {
		c.PacketsWouldDeny += n
		addTo(&c.WouldDeny, map[string]uint64{name: n})
	}
}

func (d *Datapath) zeroCounters(index uint32) error {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return err
	}
	if err := d.bpf.NfCounters.Put(index, make([]bpfCounters, cpus)); err != nil {
		return fmt.Errorf("counters: %w", err)
	}
	keys, zeros := make([]uint32, maxReasons), make([]uint64, maxReasons)
	for reason := range maxReasons {
		keys[reason] = index*maxReasons + reason
	}
	for _, m := range []*ebpf.Map{d.bpf.NfDrops, d.bpf.NfAudited} {
		if _, err := m.BatchUpdate(keys, zeros, nil); err != nil {
			return fmt.Errorf("drop counters: %w", err)
		}
	}
	return nil
}
