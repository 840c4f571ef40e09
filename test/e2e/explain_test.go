// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"testing"

	"github.com/netfence/netfence/internal/testenv"
)

// What explain says of an attachment is what becomes of its packets, before a name was asked for and after.
func TestExplain(t *testing.T) {
	zone := testenv.Zone{Records: []string{
		"www.shop.example. 60 IN A 203.0.113.1", "www.shop.example. 60 IN A 203.0.113.9", "evil.example. 60 IN A 203.0.113.66",
	}}
	s := newNamed(t, testenv.VethDevice, zone)
	s.Policy(t, "names.yaml", "mode: allowlist\nallow: ["+alwaysAllowed+", 203.0.113.2, \"www.shop.example:7\"]\ndeny: [203.0.113.9]\n")
	s.Start(t)
	s.both(t, func(t *testing.T, p place, id string) {
		explain := func(destination string) (allow bool, reason string) {
			t.Helper()
			var said struct{ Verdict, Reason string }
			if err := json.Unmarshal([]byte(s.Must(t, "explain", id, destination, "-o", "json")), &said); err != nil {
				t.Fatal(err)
			}
			return said.Verdict == "allow", said.Reason
		}
		agrees := func(want bool, addrs ...string) {
			t.Helper()
			for _, addr := range addrs {
				if allow, reason := explain(addr + ":7"); allow != want {
					t.Errorf("explain %s: %v, %s", addr, allow, reason)
				}
			}
			s.reaches(t, p, want, addrs...)
		}
		agrees(true, "203.0.113.2")
		agrees(false, "203.0.113.1", "203.0.113.9", "203.0.113.66")
		if allow, reason := explain("www.shop.example"); !allow {
			t.Errorf("explain www.shop.example: %s", reason)
		}
		if allow, reason := explain("evil.example"); allow {
			t.Errorf("explain evil.example: %s", reason)
		}
		s.dig(t, p, "www.shop.example")
		agrees(true, "203.0.113.1", "203.0.113.2")
		agrees(false, "203.0.113.9", "203.0.113.66")
		if allow, reason := explain("203.0.113.1:8"); allow {
			t.Errorf("explain another port: %s", reason)
		}
	})
}
