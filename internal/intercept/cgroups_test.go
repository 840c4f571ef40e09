// SPDX-License-Identifier: Apache-2.0

package intercept_test

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/intercept"
	"github.com/netfence/netfence/internal/testenv"
)

func TestCgroups(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.Cgroup2)
	w := testenv.NewWorld(t, testenv.Self(t), testenv.VethDevice)
	cg := testenv.NewCgroup(t)
	d := open(t)
	id, index := attach(t, d, cgroupTarget(t, cg), everywhere())
	outside := testenv.Observe(t, w.Outside, "eth0")
	asked := append(questions(append(plainKinds, mappedKinds...), []string{"9.9.9.9", "198.51.100.9", "10.77.0.2", "127.0.0.53", "0.0.0.0"}),
		questions(plainKinds, []string{"2620:fe::fe", "2001:db8:100::53", "::1"})...)
	unanswered(t, asked, ask(t, nil, cg, asked...), unix.EPERM)

	front(t, intercept.OpenCgroups, d)
	for _, nameserver := range d.Nameservers(id) {
		asked = append(asked, questions(plainKinds, []string{nameserver.String()})...)
	}
	own := netip.MustParseAddrPort(d.DNSAddress(id))
	for _, kind := range plainKinds {
		asked = append(asked, question{Kind: kind, Servers: []netip.AddrPort{own}})
	}
	answered(t, index, asked, ask(t, nil, cg, asked...))

	t.Run("one socket asks several servers", func(t *testing.T) {
		var servers []netip.AddrPort
		for _, s := range []string{"9.9.9.9", "8.8.8.8", "127.0.0.53", "9.9.9.9", "1.1.1.1", "1.0.0.1", "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "9.9.9.9"} {
			servers = append(servers, port53(s))
		}
		asked := []question{{Kind: "udp", Servers: servers}, {Kind: "connected", Servers: servers}, {Kind: "udp-mapped", Servers: servers}}
		answered(t, index, asked, ask(t, nil, cg, asked...))
	})
	t.Run("the host asks on its behalf", func(t *testing.T) {
		asked := []question{{Kind: "udp", Servers: []netip.AddrPort{own}}, {Kind: "tcp", Servers: []netip.AddrPort{own}}}
		answered(t, index, asked, ask(t, nil, nil, asked...))
	})
	escaped(t, outside, nil, cg)
}
