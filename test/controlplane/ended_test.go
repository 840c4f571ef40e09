// SPDX-License-Identifier: Apache-2.0

package controlplane_test

import (
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/netfence/netfence/internal/testenv"
)

// The control plane learns of every end, and why.
func TestUnsubscribed(t *testing.T) {
	t.Parallel()
	host := testenv.NewNS(t)
	d, p := start(t, host, builtFromPublished)
	ack := `{"mode": "POLICY_MODE_ALLOWLIST"}`
	want := func(what, id, reason string) {
		t.Helper()
		if got := p.Unsubscribed(); got.ID != id || got.Reason != reason {
			t.Errorf("%s: got %+v, want %s of %s", what, got, reason, id)
		}
		for _, a := range d.List(t) {
			if a.ID == id {
				t.Errorf("%s: list still has %+v", what, a)
			}
		}
	}

	id := attachCgroup(t, d, p)
	d.Must(t, "detach", "--id", id)
	want("detach", id, reasonDetached)

	cgroup := testenv.NewCgroup(t)
	id = attach(t, d, p, ack, "--cgroup", cgroup.Path)
	cgroup.Remove(t)
	want("cgroup removed", id, reasonRemoved)

	testenv.Veth(t, testenv.End{NS: host, Name: "work0"},
		testenv.End{NS: testenv.NewNS(t), Name: "eth0", Addrs: []netip.Prefix{netip.MustParsePrefix("10.77.0.2/24")}})
	id = attach(t, d, p, ack, "--interface", "work0")
	host.Do(func() {
		link, err := netlink.LinkByName("work0")
		if err == nil {
			err = netlink.LinkDel(link)
		}
		if err != nil {
			t.Fatal(err)
		}
	})
	want("interface deleted", id, reasonRemoved)

	one, two := attachCgroup(t, d, p), attachCgroup(t, d, p)
	d.Must(t, "detach", "--all")
	ended := map[string]string{}
	for range 2 {
		got := p.Unsubscribed()
		ended[got.ID] = got.Reason
	}
	if ended[one] != reasonDetached || ended[two] != reasonDetached {
		t.Errorf("detach --all: %v", ended)
	}
}

// What ended while nobody listened is told afterwards: it is not in the SyncRequest.
func TestEndedWhileDisconnected(t *testing.T) {
	t.Parallel()
	d, p := start(t, nil, builtFromPublished)
	kept, gone := attachCgroup(t, d, p), attachCgroup(t, d, p)
	p.Stop()
	d.Must(t, "detach", "--id", gone)
	p.Start()
	if request := p.Connect(); len(request.Attachments) != 1 || request.Attachments[0].ID != kept {
		t.Errorf("SyncRequest has %+v, want %s alone", request.Attachments, kept)
	}
	if got := p.Unsubscribed(); got.ID != gone || got.Reason != reasonDetached {
		t.Errorf("got %+v, want DETACHED of %s", got, gone)
	}
}
