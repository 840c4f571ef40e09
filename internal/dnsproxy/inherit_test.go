// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/netfence/netfence/internal/datapath"
	"github.com/netfence/netfence/policy"
)

// What another has learned is learned as an answer would be: by the rules of all members, past the guard, and for no longer.
func TestInherit(t *testing.T) {
	held := []datapath.Held{
		{Name: "a.example", Addr: netip.MustParseAddr("203.0.113.1"), TTL: 90*time.Second + time.Millisecond},
		{Name: "a.example", Addr: netip.MustParseAddr("203.0.113.2"), TTL: 20 * time.Second},
		{Name: "a.example", Addr: netip.MustParseAddr("10.0.0.1"), TTL: 90 * time.Second},
		{Name: "b.example", Addr: netip.MustParseAddr("203.0.113.3"), TTL: time.Hour},
		{Name: "a.example", Addr: netip.MustParseAddr("203.0.113.4"), TTL: time.Hour, Proxy: true},
	}
	private := allowlist()
	private.DNS.Allow = []policy.DomainRule{{Domain: "a.example", Private: true, Force: true}}
	proxied := policy.Policy{Mode: policy.ModeAllowlist, DNS: policy.DNS{Mode: policy.DNSProxy}}
	audited := allowlist("a.example")
	audited.Audit = true
	for name, c := range map[string]struct {
		policies []policy.Policy
		want     []string
	}{
		"its rule":            {[]policy.Policy{allowlist("a.example")}, []string{"0 a.example 20s [203.0.113.2]", "0 a.example 1m30s [203.0.113.1]"}},
		"all rules":           {[]policy.Policy{allowlist("b.example", "a.example")}, []string{"0 a.example 20s [203.0.113.2]", "0 a.example 1m30s [203.0.113.1]", "0 b.example 1h0m0s [203.0.113.3]"}},
		"private answers":     {[]policy.Policy{private}, []string{"0 a.example 20s [203.0.113.2]", "0 a.example 1m30s [10.0.0.1 203.0.113.1]"}},
		"no rule":             {[]policy.Policy{allowlist("c.example")}, nil},
		"both members":        {[]policy.Policy{allowlist("a.example", "b.example"), allowlist("b.example")}, []string{"0 b.example 1h0m0s [203.0.113.3]", "1 b.example 1h0m0s [203.0.113.3]"}},
		"a control plane":     {[]policy.Policy{proxied}, nil},
		"one around it":       {[]policy.Policy{allowlist("a.example"), proxied}, nil},
		"audit learns itself": {[]policy.Policy{audited}, nil},
		"nobody":              {nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			k := &kernel{}
			k.set(t, 7, c.policies...)
			s, err := New(Options{
				Kernel: k, Upstreams: func() ([]netip.AddrPort, error) { return nil, nil },
				HostAddrs: func() ([]netip.Addr, error) { return nil, nil },
			})
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Inherit(t.Context(), 7, held); err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, l := range k.taught() {
				got = append(got, fmt.Sprint(l.Member.Index-7, " ", l.Name, " ", l.TTL, " ", l.Addrs))
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("learned\n%s, want\n%s", strings.Join(got, "\n"), strings.Join(c.want, "\n"))
			}
		})
	}
}

// A policy that changes meanwhile has it decided anew; what cannot be learned is an error.
func TestInheritAgain(t *testing.T) {
	k := &kernel{}
	k.set(t, 7, allowlist("a.example"))
	s, err := New(Options{
		Kernel: k, Upstreams: func() ([]netip.AddrPort, error) { return nil, nil },
		HostAddrs: func() ([]netip.Addr, error) { return nil, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	held := []datapath.Held{{Name: "a.example", Addr: netip.MustParseAddr("203.0.113.1"), TTL: time.Minute}}
	stale := 2
	k.refusing(func() error {
		if stale--; stale >= 0 {
			return datapath.ErrStale
		}
		return nil
	})
	if err := s.Inherit(t.Context(), 7, held); err != nil || len(k.taught()) != 1 {
		t.Errorf("%v, %v", k.taught(), err)
	}
	k.refusing(func() error { return datapath.ErrFull })
	if err := s.Inherit(t.Context(), 7, held); !errors.Is(err, datapath.ErrFull) {
		t.Errorf("%v, want ErrFull", err)
	}
}
