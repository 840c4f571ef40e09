// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"net/netip"
	"testing"

	"github.com/netfence/netfence/internal/testenv"
)

// TestInterface is one table of verdicts behind every kind of device.
func TestInterface(t *testing.T) {
	for _, test := range []struct {
		name      string
		device    testenv.Device
		direction string
	}{
		{"veth", testenv.VethDevice, "ingress"},
		{"tap", testenv.TapDevice, "ingress"},
		{"tun", testenv.TunDevice, "ingress"},
		{"bridge port", testenv.BridgePort, "ingress"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newScene(t, test.device)
			s.Inside.Serve(t, servedPort)
			s.Policy(t, "table.yaml", tablePolicy)
			s.Start(t)
			id := s.Attach(t, "--interface", s.Link)
			if list := s.List(t); len(list) != 1 || list[0].ID != id || list[0].Target != s.Link ||
				list[0].Direction != test.direction || list[0].Mode != "allowlist" {
				t.Fatalf("list: %+v", list)
			}
			inside := []netip.Addr{s.Addr4, s.Addr6}
			s.check(t, s.Inside, table, silent)
			s.checkReplies(t, s.Inside, inside, silent)
			s.check(t, s.OnHost, all(true), nil) // who is not behind the device is not touched
			if drops := s.Show(t, id).Drops; drops["no-rule"] == 0 || drops["deny-rule"] == 0 {
				t.Errorf("drops by reason: %v", drops)
			}
			s.Must(t, "detach", "--id", id)
			s.check(t, s.Inside, all(true), nil)
			s.checkRepliesUnfiltered(t, s.Inside, inside)
		})
	}
}
