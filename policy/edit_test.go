// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"encoding/json"
	"math"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

func TestEdits(t *testing.T) {
	base := &Policy{Mode: ModeAllowlist, Allow: rules(t, "10.0.0.0/8", "192.0.2.1:443"), Deny: rules(t, "10.0.0.0/8")}
	before, err := json.Marshal(base)
	if err != nil {
		t.Fatal(err)
	}
	ports := rules(t, "192.0.2.1:443")[0]
	ports.TTL = time.Minute
	tests := []struct {
		name string
		got  *Policy
		want *Policy
	}{
		{"mode", base.WithMode(ModeDenylist), &Policy{Mode: ModeDenylist, Allow: base.Allow, Deny: base.Deny}},
		{"dns mode", base.WithDNSMode(DNSProxy), &Policy{Mode: ModeAllowlist, Allow: base.Allow, Deny: base.Deny, DNS: DNS{Mode: DNSProxy}}},
		{"allow new", base.WithAllow(rules(t, "192.0.2.1")[0]),
			&Policy{Mode: ModeAllowlist, Allow: rules(t, "10.0.0.0/8", "192.0.2.1:443", "192.0.2.1"), Deny: base.Deny}},
		{"deny new", base.WithDeny(rules(t, "192.0.2.1")[0]),
			&Policy{Mode: ModeAllowlist, Allow: base.Allow, Deny: rules(t, "10.0.0.0/8", "192.0.2.1")}},
		{"allow the same", base.WithAllow(rules(t, "10.0.0.0/8")[0]), base},
		{"allow in place of", base.WithAllow(ports), &Policy{Mode: ModeAllowlist, Allow: []Rule{base.Allow[0], ports}, Deny: base.Deny}},
		{"remove from both lists", base.WithoutPrefix(netip.MustParsePrefix("10.0.0.0/8")),
			&Policy{Mode: ModeAllowlist, Allow: rules(t, "192.0.2.1:443"), Deny: []Rule{}}},
		{"remove with ports", base.WithoutPrefix(netip.MustParsePrefix("192.0.2.1/32")),
			&Policy{Mode: ModeAllowlist, Allow: rules(t, "10.0.0.0/8"), Deny: base.Deny}},
		{"remove what is not there", base.WithoutPrefix(netip.MustParsePrefix("10.0.0.0/9")), base},
	}
	for _, tt := range tests {
		if !reflect.DeepEqual(tt.got, tt.want) {
			t.Errorf("%s: got %+v, want %+v", tt.name, tt.got, tt.want)
		}
	}
	if after, err := json.Marshal(base); err != nil || string(after) != string(before) {
		t.Errorf("an edit changed the policy it was made of: %s, %v", after, err)
	}
}

// TestEditsShareNothing: two edits of one policy must not see each other,
// though append could give both the same array.
func TestEditsShareNothing(t *testing.T) {
	base := &Policy{Allow: append(make([]Rule, 0, 8), rules(t, "10.0.0.0/8")...)}
	one := base.WithAllow(rules(t, "192.0.2.1")[0])
	two := base.WithAllow(rules(t, "192.0.2.2")[0])
	if one.Allow[1].Prefix == two.Allow[1].Prefix {
		t.Error("two edits wrote to one array")
	}
}

func TestDomainEdits(t *testing.T) {
	p := (&Policy{}).WithAllowDomain(DomainRule{Domain: "a.example"}).WithDenyDomain(DomainRule{Domain: "a.example"}).
		WithAllowDomain(DomainRule{Domain: "*.a.example"}).
		WithAllowDomain(DomainRule{Domain: "a.example", IncludeSubdomains: true})
	want := DNS{
		Allow: []DomainRule{{Domain: "a.example", IncludeSubdomains: true}, {Domain: "*.a.example"}},
		Deny:  []DomainRule{{Domain: "a.example"}},
	}
	if !reflect.DeepEqual(p.DNS, want) {
		t.Errorf("got %+v, want %+v", p.DNS, want)
	}
	p = p.WithoutDomain("a.example")
	if len(p.DNS.Allow) != 1 || p.DNS.Allow[0].Domain != "*.a.example" || len(p.DNS.Deny) != 0 {
		t.Errorf("without: %+v", p.DNS)
	}
}

func TestSettle(t *testing.T) {
	wall := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	const boot = 1000 * time.Second
	for _, tt := range []struct {
		name string
		rule Rule
		want time.Duration
	}{
		{"no lifetime", Rule{}, 0},
		{"a stray deadline", Rule{Deadline: 5}, 0},
		{"ttl", Rule{TTL: time.Minute}, boot + time.Minute},
		{"expires_at", Rule{ExpiresAt: wall.Add(time.Hour)}, boot + time.Hour},
		{"the earlier of both", Rule{TTL: time.Minute, ExpiresAt: wall.Add(time.Hour)}, boot + time.Minute},
		{"the earlier of both, again", Rule{TTL: 2 * time.Hour, ExpiresAt: wall.Add(time.Hour)}, boot + time.Hour},
		{"expired before the boot", Rule{ExpiresAt: wall.Add(-24 * time.Hour)}, 1},
		{"expired exactly at the boot", Rule{ExpiresAt: wall.Add(-boot)}, 1},
		{"expired just now", Rule{ExpiresAt: wall}, boot},
		{"a ttl beyond the clock", Rule{TTL: math.MaxInt64}, math.MaxInt64},
		{"a time beyond the clock", Rule{ExpiresAt: wall.AddDate(9000, 0, 0)}, math.MaxInt64},
		{"a time before the clock", Rule{ExpiresAt: wall.AddDate(-2000, 0, 0)}, 1},
	} {
		p := &Policy{Deny: []Rule{tt.rule}}
		if got := p.Settle(nil, boot, wall).Deny[0].Deadline; got != tt.want {
			t.Errorf("%s: deadline %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestSettleNeverRenews(t *testing.T) {
	wall := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	rule := rules(t, "10.0.0.0/8:443")[0]
	rule.TTL = time.Minute
	first := (&Policy{Allow: []Rule{rule}}).Settle(nil, 0, wall)

	at := func(seconds int) (time.Duration, time.Time) {
		d := time.Duration(seconds) * time.Second
		return d, wall.Add(d)
	}
	boot, now := at(30)
	again := (&Policy{Allow: []Rule{rule}}).Settle(first, boot, now)
	if again.Allow[0].Deadline != time.Minute {
		t.Errorf("sent again: deadline %v, want 1m", again.Allow[0].Deadline)
	}
	if edited := again.WithAllow(rule); edited.Allow[0].Deadline != time.Minute {
		t.Errorf("allowed again: deadline %v, want 1m", edited.Allow[0].Deadline)
	}
	// Expired is not gone: sent again, it stays expired.
	boot, now = at(120)
	again = again.WithAllow(rule).Settle(again, boot, now)
	if d := again.WithMode(ModeAllowlist).Decide(tcp("10.0.0.1:443"), boot); d.Action != Deny {
		t.Errorf("an expired rule sent again lives: %+v", d)
	}
	reordered := rule
	reordered.Ports = []Ports{{80, 80, TCP}, {443, 443, TCP}}
	two := (&Policy{Allow: []Rule{reordered}}).Settle(nil, 0, wall)
	reordered.Ports = []Ports{{443, 443, TCP}, {80, 80, TCP}}
	if got := (&Policy{Allow: []Rule{reordered}}).Settle(two, boot, now).Allow[0].Deadline; got != time.Minute {
		t.Errorf("ports in another order: deadline %v, want 1m", got)
	}
	// What differs is a new rule.
	for name, change := range map[string]func(*Rule){
		"ttl":        func(r *Rule) { r.TTL = 2 * time.Minute },
		"expires_at": func(r *Rule) { r.ExpiresAt = wall.Add(time.Hour) },
		"ports":      func(r *Rule) { r.Ports = nil },
		"prefix":     func(r *Rule) { r.Prefix = netip.MustParsePrefix("10.0.0.0/9") },
	} {
		r := rule
		change(&r)
		if got := (&Policy{Allow: []Rule{r}}).Settle(first, boot, now).Allow[0].Deadline; got <= boot {
			t.Errorf("another %s: deadline %v is the old one", name, got)
		}
	}
	if got := (&Policy{Deny: []Rule{rule}}).Settle(first, boot, now).Deny[0].Deadline; got != boot+time.Minute {
		t.Errorf("in the other list: deadline %v, want %v", got, boot+time.Minute)
	}
	// Removed, then allowed: the documented way to renew.
	removed := again.WithoutPrefix(rule.Prefix).Settle(again, boot, now)
	if got := removed.WithAllow(rule).Settle(removed, boot, now).Allow[0].Deadline; got != boot+time.Minute {
		t.Errorf("removed, then allowed: deadline %v, want %v", got, boot+time.Minute)
	}
}

func TestSettleCopiesOnlyWhenNeeded(t *testing.T) {
	plain := &Policy{Allow: rules(t, "10.0.0.0/8")}
	if plain.Settle(nil, 1, time.Time{}) != plain {
		t.Error("a policy without lifetimes was copied")
	}
	timed := &Policy{Allow: rules(t, "10.0.0.0/8")}
	timed.Allow[0].TTL = time.Minute
	if settled := timed.Settle(nil, 1, time.Time{}); settled == timed || timed.Allow[0].Deadline != 0 {
		t.Error("Settle wrote to the policy it was given")
	}
}

func TestJSON(t *testing.T) {
	p := specPolicy()
	p.Allow[1].Deadline = 90*time.Second + 1
	b, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	var got Policy
	if err := json.Unmarshal(b, &got); err != nil || !reflect.DeepEqual(&got, p) {
		t.Errorf("%s\nread as %+v, %v\nwant %+v", b, got, err, p)
	}
	if b, err = json.Marshal(BlockAll()); err != nil {
		t.Fatal(err)
	}
	const blockAll = `{"mode":"block-all","audit":false,"allow_cidrs":[],"deny_cidrs":[],"replies":"allow","replies_udp":[],` +
		`"loopback":"own","source":[],"dns":{"mode":"allowlist","allow_domains":[],"deny_domains":[],"upstream_servers":[],` +
		`"refuse_with":"default","forward":[]}}`
	if string(b) != blockAll {
		t.Errorf("block-all is\n%s\nwant\n%s", b, blockAll)
	}
	if err := json.Unmarshal(b, &got); err != nil || !reflect.DeepEqual(&got, BlockAll()) {
		t.Errorf("block-all read as %+v, %v", got, err)
	}
	const rule = `{"cidr":"192.0.2.10/32","ports":["5432/tcp"],"ttl":"600s","deadline":"90.000000001s"}`
	if b, err = json.Marshal(p.Allow[1]); err != nil || string(b) != rule {
		t.Errorf("rule is %s, %v, want %s", b, err, rule)
	}
	for _, bad := range []string{
		`{"mode":"open"}`, `{"mod":"disabled"}`, `{"allow_cidrs":[{"cidr":"10.0.0.0/8","port":[]}]}`, `{"dns":{"allow":[]}}`,
		`{"dns":{"allow_domains":[{"name":"x"}]}}`, `{"allow_cidrs":[{"cidr":"10.0.0.0"}]}`, `{"allow_cidrs":[{"cidr":"10.0.0.0/8","ports":["x"]}]}`,
	} {
		if err := json.Unmarshal([]byte(bad), &got); err == nil {
			t.Errorf("%s is accepted", bad)
		}
	}
}

func TestYAML(t *testing.T) {
	b, err := yaml.Marshal(specPolicy())
	if err != nil {
		t.Fatal(err)
	}
	f, err := ParseFile("f.yaml", b)
	if err != nil || !reflect.DeepEqual(f.Policy, specPolicy()) {
		t.Errorf("%s\nread as %+v, %v", b, f, err)
	}
	if !strings.HasPrefix(string(b), "mode: allowlist\nallow:\n    - 10.0.0.0/16\n") {
		t.Errorf("written as\n%s", b)
	}
}
