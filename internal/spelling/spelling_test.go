// SPDX-License-Identifier: Apache-2.0

package spelling

import (
	"strings"
	"testing"
)

func TestNearest(t *testing.T) {
	known := []string{"allow", "deny", "dns", "mode", "ports", "upstreams", strings.Repeat("x", 65)}
	for word, want := range map[string]string{
		"allow": "allow", "alow": "allow", "allwo": "allow", "upstream": "upstreams", "prots": "ports",
		"modes": "mode", "node": "mode", "xy": "", "": "", "something": "", "dny": "deny", "dnz": "dns",
		strings.Repeat("x", 64): "", "ndeied": "",
	} {
		if got := Nearest(word, known); got != want {
			t.Errorf("%q: %q, want %q", word, got, want)
		}
	}
}

func TestExchangedLettersAreOneSlip(t *testing.T) {
	if got := Nearest("ulr", []string{"tls", "url"}); got != "url" {
		t.Errorf("ulr: %q", got)
	}
}
