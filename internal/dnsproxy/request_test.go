// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"bytes"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// FuzzName holds that a name is written as miekg/dns does.
func FuzzName(f *testing.F) {
	label := strings.Repeat("x", 63)
	for _, name := range []string{
		".", "a.", "a.example.", "_dns.resolver.arpa.", `a\.b.example.`, `\065.example.`, "a..example.", ".a.", "ä.example.", " .", "*.example.",
		label + ".", label + "x.", strings.Repeat(label+".", 3) + label[2:] + ".", strings.Repeat(label+".", 3) + label[1:] + ".", strings.Repeat("a.", 127), strings.Repeat("a.", 128),
	} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if !dns.IsFqdn(name) {
			return
		}
		var wire [maxWireName]byte
		end, want := dns.PackDomainName(name, wire[:], 0, nil, false)
		got, err := appendName([]byte("before"), name)
		if (err == nil) != (want == nil) || err == nil && !bytes.Equal(got, append([]byte("before"), wire[:end]...)) {
			t.Errorf("%q: %x, %v, want %x, %v", name, got, err, wire[:end], want)
		}
	})
}
