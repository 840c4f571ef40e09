// SPDX-License-Identifier: Apache-2.0

package target

import (
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/testenv"
)

// watchVeth makes a veth pair and a Watcher of the host's end that has looked at
// it already.
func watchVeth(t *testing.T) (host *testenv.NS, w *Watcher, veth Target) {
	t.Helper()
	host = testenv.NewNS(t)
	testenv.Veth(t, testenv.End{NS: host, Name: "veth1"}, testenv.End{NS: testenv.NewNS(t), Name: "eth0"})
	host.Do(func() {
		var err error
		if veth, err = ResolveInterface("veth1", DirectionAuto, ""); err != nil {
			t.Fatal(err)
		}
		w = newWatcher(t)
	})
	w.Add(veth)
	settle(w)
	return host, w, veth
}

// edit does something to the device called name.
func edit(t *testing.T, ns *testenv.NS, name string, f func(netlink.Link) error) {
	t.Helper()
	ns.Do(func() {
		link, err := netlink.LinkByName(name)
		if err == nil {
			err = f(link)
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	})
}

func rename(to string) func(netlink.Link) error {
	return func(link netlink.Link) error { return netlink.LinkSetName(link, to) }
}

func moveTo(ns *testenv.NS) func(netlink.Link) error {
	return func(link netlink.Link) error {
		fd, err := unix.Open(ns.Path(), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return netlink.LinkSetNsFd(link, fd)
	}
}

func TestWatchInterfaces(t *testing.T) {
	testenv.Require(t, testenv.Root)
	elsewhere := testenv.NewNS(t)
	for name, vanish := range map[string]func(t *testing.T, host *testenv.NS){
		"deleted": func(t *testing.T, host *testenv.NS) {
			edit(t, host, "veth1", netlink.LinkDel)
		},
		"recreated under the same name": func(t *testing.T, host *testenv.NS) {
			edit(t, host, "veth1", netlink.LinkDel)
			host.Do(func() { addLink(t, &netlink.Bridge{LinkAttrs: named("veth1")}) })
		},
		"recreated with the same name, kind and index": func(t *testing.T, host *testenv.NS) {
			edit(t, host, "veth1", func(link netlink.Link) error {
				if err := netlink.LinkDel(link); err != nil {
					return err
				}
				attrs := named("veth1")
				attrs.Index = link.Attrs().Index
				again := netlink.NewVeth(attrs)
				again.PeerName = "peer"
				return netlink.LinkAdd(again)
			})
		},
		"moved to another namespace": func(t *testing.T, host *testenv.NS) {
			edit(t, host, "veth1", moveTo(elsewhere))
		},
		// Back with its old index it looks the same, and had no filter of ours meanwhile.
		"moved to another namespace and back": func(t *testing.T, host *testenv.NS) {
			away := testenv.NewNS(t)
			edit(t, host, "veth1", moveTo(away))
			edit(t, away, "veth1", moveTo(host))
		},
	} {
		t.Run(name, func(t *testing.T) {
			host, w, veth := watchVeth(t)
			run(t, w)
			vanish(t, host)
			expect(t, w, Removed, veth)
		})
	}
}

func TestWatchRename(t *testing.T) {
	testenv.Require(t, testenv.Root)
	host, w, veth := watchVeth(t)
	run(t, w)
	edit(t, host, "veth1", rename("veth2"))
	now := expect(t, w, Renamed, veth)
	if now.Name != "veth2" || now.Direction != Ingress {
		t.Errorf("%+v", now)
	}
	edit(t, host, "veth2", rename("veth3"))
	if now := expect(t, w, Renamed, veth); now.Name != "veth3" {
		t.Errorf("%+v", now)
	}
	edit(t, host, "veth3", netlink.LinkDel)
	if gone := expect(t, w, Removed, veth); gone.Name != "veth3" {
		t.Errorf("%+v", gone)
	}
}

// Of two renames that nobody read of, the latest name counts.
func TestRenamesAreOneEvent(t *testing.T) {
	testenv.Require(t, testenv.Root)
	host, w, veth := watchVeth(t)
	edit(t, host, "veth1", rename("veth2"))
	edit(t, host, "veth2", rename("veth3"))
	run(t, w)
	testenv.Eventually(t, "both renames are seen", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.pending[veth.key()].Target.Name == "veth3"
	})
	// Run may have offered the first one before it knew of the second.
	now := expect(t, w, Renamed, veth)
	if now.Name == "veth2" {
		now = expect(t, w, Renamed, veth)
	}
	if now.Name != "veth3" {
		t.Errorf("%+v", now)
	}
}

// What happens to a device that stays is no removal, not even when a message of
// the bridge says RTM_DELLINK.
func TestWatchIgnoresTheRest(t *testing.T) {
	testenv.Require(t, testenv.Root)
	host, w, veth := watchVeth(t)
	run(t, w)
	testenv.Bridge(t, testenv.End{NS: host, Name: "br0"}, "veth1")
	edit(t, host, "veth1", netlink.LinkSetNoMaster)
	edit(t, host, "veth1", netlink.LinkSetDown)
	edit(t, host, "veth1", func(link netlink.Link) error {
		return netlink.LinkSetHardwareAddr(link, []byte{2, 0, 0, 0, 0, 9})
	})
	edit(t, host, "veth1", rename("veth2"))
	if now := expect(t, w, Renamed, veth); now.MAC != "02:00:00:00:00:09" {
		t.Errorf("%+v", now)
	}
}

// The removal is among what does not fit into the socket's buffer.
func TestLostLinkMessages(t *testing.T) {
	testenv.Require(t, testenv.Root)
	host, w, veth := watchVeth(t)
	narrow(t, w.links)
	for i := range 20 {
		edit(t, host, "lo", func(link netlink.Link) error { return netlink.LinkSetMTU(link, 9000+i) })
	}
	edit(t, host, "veth1", netlink.LinkDel)
	run(t, w)
	expect(t, w, Removed, veth)
}

func TestCloseEndsRun(t *testing.T) {
	testenv.Require(t, testenv.Root)
	w := newWatcher(t)
	done := make(chan error)
	go func() { done <- w.Run(t.Context()) }()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Errorf("run: %v", err)
	}
	if _, open := <-w.Events(); open {
		t.Error("an event, want the end")
	}
}
