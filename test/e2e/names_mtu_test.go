// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/netfence/netfence/internal/testenv"
)

// textZone has names n400.example and so on, with texts of so many bytes; a message around them takes some 60.
func textZone(lengths ...int) (z testenv.Zone) {
	for _, n := range lengths {
		var text []string
		for left := n; left > 0; left -= 250 {
			text = append(text, fmt.Sprintf("%q", strings.Repeat("x", min(left, 250))))
		}
		z.Records = append(z.Records, fmt.Sprintf("n%d.example. 60 IN TXT %s", n, strings.Join(text, " ")))
	}
	return z
}

// TestNarrowDevices: what is larger than a packet of the workload's device is not lost: it is cut, and asked for again
// over TCP, whose segments fit. The device is asked when there is an answer, so that a change counts at once.
func TestNarrowDevices(t *testing.T) {
	texts := []int{400, 500, 900, 1155, 9000}
	zone := textZone(texts...)
	devices := map[string]testenv.Device{"veth": testenv.VethDevice, "bridge port": testenv.BridgePort, "tap": testenv.TapDevice, "tun": testenv.TunDevice}
	for name, device := range devices {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // it mostly waits
			s := newNamed(t, device, zone)
			s.Policy(t, "names.yaml", allowing("*.example"))
			s.Start(t)
			s.attach(t, s.inside)
			for _, way := range []struct {
				mtu     int
				both    bool // ends; else the workload believes in more than there is
				servers []string
				whole   int // the largest text that fits a datagram
			}{
				{1280, true, []string{public, public6}, 1155},
				{1000, false, []string{public}, 900}, // there is no IPv6 on such a device
				{576, true, []string{public}, 400},
			} {
				setMTU(t, s.Host, s.Link, way.mtu)
				if way.both {
					setMTU(t, s.Workload, "eth0", way.mtu)
				}
				for _, server := range way.servers {
					for _, n := range texts {
						for _, args := range [][]string{{"+ignore"}, {}, {"+tcp"}, {"+ignore", "+bufsize=0", "+noedns"}} {
							whole := max(n, way.whole)
							if slices.Contains(args, "+ignore") {
								whole = way.whole
							}
							if slices.Contains(args, "+noedns") {
								whole = min(whole, 400)
							}
							a := s.inside.sections(t, server, append([]string{fmt.Sprintf("n%d.example", n), "TXT"}, args...)) // dig says 1232
							if a.status != "NOERROR" || a.flag("tc") != (n > whole) || n <= whole && len(a.records) != 1 {
								t.Errorf("MTU %d, %s is asked for %d bytes, %s: %s", way.mtu, server, n, args, a.text)
							}
						}
					}
				}
			}
			s.nobodyElseAsked(t)
		})
	}
}

// TestNarrowRouters: behind the workload is a router, and a way narrower than any device that an end of it knows. What the
// router says of that is sent to whom the client has asked.
func TestNarrowRouters(t *testing.T) {
	texts := []int{400, 1155, 9000}
	s := newNamed(t, testenv.VethDevice, textZone(texts...))
	router, inner := testenv.NewNS(t), testenv.NewNS(t)
	nets := func(last string) (a, b []netip.Prefix) {
		return []netip.Prefix{netip.MustParsePrefix("10.88.0." + last + "/24"), netip.MustParsePrefix("fd88::" + last + "/64")},
			[]netip.Prefix{netip.MustParsePrefix("10.89.0." + last + "/24"), netip.MustParsePrefix("fd89::" + last + "/64")}
	}
	near1, far1 := nets("1")
	near2, far2 := nets("2")
	testenv.Veth(t, testenv.End{NS: s.Workload, Name: "narrow0", Addrs: near1}, testenv.End{NS: router, Name: "narrow1", Addrs: near2})
	testenv.Veth(t, testenv.End{NS: router, Name: "wide0", Addrs: far1}, testenv.End{NS: inner, Name: "eth0", Addrs: far2})
	for i, all := range []string{"0.0.0.0/0", "::/0"} {
		for _, ns := range []*testenv.NS{s.Workload, router} {
			ns.Sysctl(t, []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"}[i], "1")
		}
		s.Workload.Route(t, far1[i].Masked(), near2[i].Addr(), "narrow0")
		router.Route(t, netip.MustParsePrefix(all), near1[i].Addr(), "narrow1")
		inner.Route(t, netip.MustParsePrefix(all), far1[i].Addr(), "eth0")
	}
	s.Policy(t, "names.yaml", allowing("*.example"))
	s.Start(t)
	s.attach(t, s.inside)
	client := place{name: "inner", ns: inner}
	for _, way := range []struct {
		mtu     int
		servers []string
	}{{smallMTU, []string{public, public6}}, {576, []string{public}}} {
		setMTU(t, s.Workload, "narrow0", way.mtu)
		setMTU(t, router, "narrow1", way.mtu)
		for _, server := range way.servers {
			for _, n := range texts {
				for _, args := range [][]string{{}, {"+tcp"}} {
					a := client.sections(t, server, append([]string{fmt.Sprintf("n%d.example", n), "TXT"}, args...))
					if a.status != "NOERROR" || a.flag("tc") || len(a.records) != 1 {
						t.Errorf("MTU %d, %s is asked for %d bytes, %s: %s", way.mtu, server, n, args, a.text)
					}
				}
			}
		}
	}
	s.nobodyElseAsked(t)
}
