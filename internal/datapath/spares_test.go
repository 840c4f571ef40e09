// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"testing"

	"github.com/cilium/ebpf"

	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/policy"
)

// spares waits until as many are prepared as are wanted.
func spares(t *testing.T, d *Datapath) []spare {
	t.Helper()
	var all []spare
	testenv.Eventually(t, "spares are prepared", func() bool {
		d.slots.mu.Lock()
		defer d.slots.mu.Unlock()
		all = append([]spare(nil), d.slots.spares...)
		return len(all) == d.slots.wanted
	})
	return all
}

// placed are the maps of a slot.
func placed(t *testing.T, d *Datapath, index uint32) (table, clauses ebpf.MapID) {
	t.Helper()
	for outer, id := range map[*ebpf.Map]*ebpf.MapID{d.bpf.NfTables: &table, d.bpf.NfClauses: &clauses} {
		if err := outer.Lookup(index, id); err != nil {
			t.Fatal(err)
		}
	}
	return table, clauses
}

// Rules that are new go into maps that are in place already, so that nobody waits for RCU; those that do not fit get
// maps of their own. Either way they are in force.
func TestNewRulesFindTablesInPlace(t *testing.T) {
	d := openWith(t, Config{Dir: pinDir(t), MaxAttachments: 3})
	veth := vethTarget(t, "v0")
	id := attachOnly(t, d, veth)
	even := func(n uint16) []policy.Rule {
		var all []policy.Ports
		for i := range n {
			all = append(all, ports(10+2*i, 10+2*i, policy.UDP))
		}
		return []policy.Rule{rule("203.0.113.0/24", all...)}
	}
	for _, c := range []struct {
		name           string
		rules          []policy.Rule
		table, clauses bool // of the spare
	}{
		{"prefixes", []policy.Rule{rule("203.0.113.0/24")}, true, true},
		{"a few ports", even(20), true, true},
		{"many ports", even(spareClauses + 20), true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			first := spares(t, d)[0]
			table, clauses := placed(t, d, first.index)
			replace(t, d, id, &policy.Policy{Mode: policy.ModeAllowlist, Allow: c.rules})
			if got := d.known[id].slot.index; got != first.index {
				t.Fatalf("slot %d, want %d", got, first.index)
			}
			gotTable, gotClauses := placed(t, d, first.index)
			if (gotTable == table) != c.table || (gotClauses == clauses) != c.clauses {
				t.Errorf("maps %d and %d, were %d and %d", gotTable, gotClauses, table, clauses)
			}
			for port, want := range map[int]uint32{10: passed, 11: dropped} {
				if c.name == "prefixes" {
					want = passed
				}
				if got := run(t, d.bpf.NfOutL2, veth, udp4("203.0.113.6", port)); got != want {
					t.Errorf("port %d: verdict %#x, want %#x", port, got, want)
				}
			}
			if got := run(t, d.bpf.NfOutL2, veth, udp4("198.51.100.6", 10)); got != dropped {
				t.Errorf("elsewhere: verdict %#x, want drop", got)
			}
		})
	}
}

// What a daemon has prepared is no use to the next one, which empties it: no slot is lost.
func TestSparesOfTheLastDaemonAreEmptied(t *testing.T) {
	dir := pinDir(t)
	for range 3 {
		d, err := openRenewed(Config{Dir: dir, MaxAttachments: 3})
		if err != nil {
			t.Fatal(err)
		}
		testenv.Eventually(t, "all other slots are free", func() bool {
			d.slots.mu.Lock()
			defer d.slots.mu.Unlock()
			return len(d.slots.spares) == 3 && len(d.slots.free) == fewSlots-1-3
		})
		contents, err := readArray[bpfSlotContent](d.bpf.NfSlots)
		if err != nil {
			t.Fatal(err)
		}
		noted := 0
		for _, content := range contents {
			if content != (bpfSlotContent{}) {
				noted++
			}
		}
		if noted != 3 {
			t.Errorf("%d slots are noted, want those of 3 spares", noted)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
