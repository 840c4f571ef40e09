// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/netfence/netfence/internal/target"
	"github.com/netfence/netfence/policy"
)

// abi1 is what the last build of ABI 1 loaded: maps and programs, as they were then.
func abi1(t testing.TB) *ebpf.CollectionSpec {
	t.Helper()
	f, err := os.Open("testdata/abi1/bpf_bpfel.o.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	unzipped, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	object, err := io.ReadAll(unzipped)
	if err != nil {
		t.Fatal(err)
	}
	spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(object))
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

// abi1Hooks are the pins of ABI 1, with the programs that they held.
var abi1Hooks = map[target.Type][]struct {
	name, program string
	attach        ebpf.AttachType
}{
	target.Interface: {
		{verdictHook, "nf_out_l2", ebpf.AttachTCXIngress},
		{"replies", "nf_in_l2", ebpf.AttachTCXEgress},
	},
	target.Cgroup: {
		{verdictHook, "nf_cg_egress", ebpf.AttachCGroupInetEgress},
		{"replies", "nf_cg_ingress", ebpf.AttachCGroupInetIngress},
		{"connect4", "nf_connect4", ebpf.AttachCGroupInet4Connect},
		{"connect6", "nf_connect6", ebpf.AttachCGroupInet6Connect},
		{"sendmsg4", "nf_sendmsg4", ebpf.AttachCGroupUDP4Sendmsg},
		{"sendmsg6", "nf_sendmsg6", ebpf.AttachCGroupUDP6Sendmsg},
		{"recvmsg4", "nf_recvmsg4", ebpf.AttachCGroupUDP4Recvmsg},
		{"recvmsg6", "nf_recvmsg6", ebpf.AttachCGroupUDP6Recvmsg},
		{"getpeername4", "nf_getpeername4", ebpf.AttachCgroupInet4GetPeername},
		{"getpeername6", "nf_getpeername6", ebpf.AttachCgroupInet6GetPeername},
		{"bind4", "nf_bind4", ebpf.AttachCGroupInet4Bind},
		{"bind6", "nf_bind6", ebpf.AttachCGroupInet6Bind},
	},
}

// abi1Daemon is one that has been: what it pinned is there, and nobody runs.
type abi1Daemon struct {
	pins pins
	coll *ebpf.Collection
	last uint32 // index and incarnation of the last attachment
}

func startABI1(t testing.TB, dir string) *abi1Daemon {
	t.Helper()
	o := &abi1Daemon{pins: pins(dir)}
	for _, sub := range []string{mapsDir, linksDir} {
		if err := os.MkdirAll(filepath.Join(o.pins.version(1), sub), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	o.coll, err = ebpf.NewCollectionWithOptions(abi1(t), ebpf.CollectionOptions{
		Maps: ebpf.MapOptions{PinPath: filepath.Join(o.pins.version(1), mapsDir)},
	})
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// put writes to one of its maps.
func (o *abi1Daemon) put(t testing.TB, name string, key, value any) {
	t.Helper()
	if err := o.coll.Maps[name].Put(key, value); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// attach puts rules in force that are those of slot 1, and one address that a.example has taught.
func (o *abi1Daemon) attach(t testing.TB, tg target.Target, learned netip.Addr) string {
	t.Helper()
	id := newID()
	record, err := describe(id, tg)
	if err != nil {
		t.Fatal(err)
	}
	o.last++
	record.Incarnation = o.last
	a := &attachment{index: o.last, record: record}
	o.put(t, bpfMapNfMeta, uint32(0), uint64(o.last))
	o.put(t, bpfMapNfAttachments, a.index, &a.record)
	word := uint64(bpfModeMODE_ALLOWLIST) | uint64(bpfWordFlagWORD_REPLIES) | uint64(bpfWordFlagWORD_DNS) |
		1<<wordSlotShift | 7<<wordGenerationShift
	o.put(t, bpfMapNfWords, a.index, word)
	name := knownName{nameKey: nameKey{text: "a.example", grant: 1}, learned: bootTime(t)}
	o.put(t, bpfMapNfNames, &bpfNameKey{Incarnation: o.last, Id: 1}, kernelName(o.last, 1, name))
	key := bpfLearnedKey{Incarnation: o.last}
	key.Address.Word = networkWords(learned)
	o.put(t, bpfMapNfLearned, &key, kernelChunk(key, [grantsPerChunk]grant{{deadline: bootTime(t) + time.Hour, name: 1}}))
	if isInterface(record) {
		o.put(t, bpfMapNfInterfaces, &bpfInterfaceKey{Netns: record.Scope, Ifindex: record.Ifindex}, identity(a))
	}

	dir := filepath.Join(o.pins.version(1), linksDir, id)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, h := range abi1Hooks[tg.Type] {
		var l link.Link
		var err error
		program := o.coll.Programs[h.program]
		if isInterface(record) {
			l, err = link.AttachTCX(link.TCXOptions{Interface: tg.Ifindex, Program: program, Attach: h.attach, Anchor: link.Head()})
		} else {
			l, err = link.AttachCgroup(link.CgroupOptions{Path: tg.Name, Attach: h.attach, Program: program})
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(l.Pin(filepath.Join(dir, h.name)), closeBPF(l)); err != nil {
			t.Fatal(err)
		}
		if h.name == verdictHook && !isInterface(record) {
			o.put(t, bpfMapNfCgroups, record.Scope, identity(a))
		}
	}
	return id
}

// rules fills slot 1.
func (o *abi1Daemon) rules(t testing.TB, p *policy.Policy) {
	t.Helper()
	table := compile(t, p).Table
	s := &slots{bpf: &bpfMaps{
		NfTables: o.coll.Maps[bpfMapNfTables], NfClauses: o.coll.Maps[bpfMapNfClauses], NfSlots: o.coll.Maps[bpfMapNfSlots],
	}}
	if err := s.build(spare{index: 1}, table.Hash(), table); err != nil {
		t.Fatal(err)
	}
}

// kill leaves what is pinned.
func (o *abi1Daemon) kill() { closeCollection(o.coll) }
