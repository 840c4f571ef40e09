// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"testing"

	"github.com/netfence/netfence/policy"
)

// What C and Go both number must not drift apart.
func TestNumbersAgreeWithC(t *testing.T) {
	spec, err := loadBpf()
	if err != nil {
		t.Fatal(err)
	}
	entries := func(name string) uint32 { return spec.Maps[name].MaxEntries }
	for _, tt := range []struct {
		name    string
		got, in uint64
	}{
		{"attachments", uint64(maxAttachments), uint64(entries(bpfMapNfAttachments))},
		{"drop reasons", uint64(maxReasons * maxAttachments), uint64(entries(bpfMapNfDrops))},
		{"slots", uint64(bpfLimitMAX_SLOTS), uint64(entries(bpfMapNfSlots))},
		{"slots of tables", uint64(bpfLimitMAX_SLOTS), uint64(entries(bpfMapNfTables))},
		{"slots of clauses", uint64(entries(bpfMapNfTables)), uint64(entries(bpfMapNfClauses))},
		{"table key", uint64(prefixSize), uint64(spec.Maps[bpfMapNfTables].InnerMap.KeySize)},
		{"table value", uint64(clauseSize), uint64(spec.Maps[bpfMapNfTables].InnerMap.ValueSize)},
		{"clause", uint64(clauseSize), uint64(spec.Maps[bpfMapNfClauses].InnerMap.ValueSize)},
		{"chain", policy.MaxChain, uint64(bpfLimitMAX_CHAIN)},
		{"match any", uint64(policy.MatchAny), uint64(bpfMatchMATCH_ANY)},
		{"match tcp", uint64(policy.MatchTCP), uint64(bpfMatchMATCH_TCP)},
		{"match udp", uint64(policy.MatchUDP), uint64(bpfMatchMATCH_UDP)},
		{"match both", uint64(policy.MatchTCPUDP), uint64(bpfMatchMATCH_TCP_UDP)},
		{"verdict deny", uint64(policy.VerdictDeny), uint64(bpfClauseVerdictVERDICT_DENY)},
		{"verdict allow", uint64(policy.VerdictAllow), uint64(bpfClauseVerdictVERDICT_ALLOW)},
		{"verdict none", uint64(policy.VerdictNone), uint64(bpfClauseVerdictVERDICT_NONE)},
		{"zero mode", 0, uint64(bpfModeMODE_BLOCK_ALL)},
		{"zero policy mode", 0, uint64(policy.ModeBlockAll)},
	} {
		if tt.got != tt.in {
			t.Errorf("%s: %d in Go, %d in C", tt.name, tt.got, tt.in)
		}
	}
	if len(reasons) != int(bpfReasonREASON_PROTECTED) {
		t.Errorf("%d drop reasons have names, C has %d", len(reasons), bpfReasonREASON_PROTECTED)
	}
}
