// SPDX-License-Identifier: Apache-2.0

package run

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/netfence/netfence/internal/events"
)

func denied(to string, names ...string) events.Event {
	return events.Event{Flow: &events.DeniedFlow{Destination: netip.MustParseAddrPort(to), Protocol: 6, Reason: "no-rule", Names: names}}
}

func summary(t *testing.T, all ...events.Event) string {
	t.Helper()
	tally := newTally()
	for _, e := range all {
		tally.add(e)
	}
	var text strings.Builder
	if err := tally.result().print(&text); err != nil {
		t.Fatal(err)
	}
	return text.String()
}

func TestSummary(t *testing.T) {
	got := summary(t,
		denied("192.0.2.1:443"), denied("[2001:db8::1]:22", "a.example", "older.example"), denied("[2001:db8::1]:22"),
		events.Event{Decision: &events.DNSDecision{Name: "evil\x1b[2J.example", Reason: "no rule"}},
		events.Event{Decision: &events.DNSDecision{Name: "bad.example", Reason: "no rule allows bad.example"}},
		events.Event{Decision: &events.DNSDecision{Name: "good.example", Type: "A", Allowed: true}},
		// One family is enough.
		events.Event{Decision: &events.DNSDecision{Name: "good.example", Type: "AAAA", Allowed: true, Reason: "allow rule good.example: upstream answers REFUSED"}},
		// The other has no address, or the upstream wants none of it.
		events.Event{Decision: &events.DNSDecision{Name: "in.example", Type: "AAAA", Allowed: true, Reason: "allow rule in.example"}},
		events.Event{Decision: &events.DNSDecision{Name: "in.example", Type: "AAAA", Allowed: true, Reason: "allow rule in.example: upstream answers REFUSED"}},
		events.Event{Decision: &events.DNSDecision{Name: "in.example", Type: "A", Allowed: true, Reason: "allow rule in.example: removed 10.0.0.1 from the answer"}},
		events.Event{Decision: &events.DNSDecision{Name: "in.example", Type: "A", Allowed: true, Reason: "allow rule in.example: removed 10.0.0.1 from the answer"}},
		events.Event{Lost: 3},
	)
	want := `netfenced run: denied
       1 × name bad.example
       1 × name "evil\x1b[2J.example", no rule
       2 × a.example ([2001:db8::1]:22/tcp), no-rule
       1 × 192.0.2.1:443/tcp, no-rule
  and 3 packets or names that were not looked at one by one
netfenced run: allowed, but not resolved
       3 × name in.example, removed 10.0.0.1 from the answer
`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if got := summary(t,
		events.Event{Flow: &events.DeniedFlow{Destination: netip.MustParseAddrPort("192.0.2.1:443"), Protocol: 6, Reason: "no-rule", WouldDeny: true}},
		events.Event{Flow: &events.DeniedFlow{Destination: netip.MustParseAddrPort("192.0.2.1:443"), Protocol: 6, Reason: "no-rule", WouldDeny: true}},
		events.Event{Flow: &events.DeniedFlow{Destination: netip.MustParseAddrPort("127.128.0.9:253"), Protocol: 17, Reason: "protected"}},
		events.Event{Decision: &events.DNSDecision{Name: "bad.example", Reason: "no rule allows bad.example", WouldDeny: true}},
	); got != `netfenced run: denied
       1 × 127.128.0.9:253/udp, protected
netfenced run: would be denied
       1 × name bad.example
       2 × 192.0.2.1:443/tcp, no-rule
` {
		t.Errorf("in audit: %s", got)
	}
	if got := summary(t); got != "" {
		t.Errorf("nothing denied, and said %q", got)
	}
}

func TestSummaryFitsOnAScreen(t *testing.T) {
	var all []events.Event
	for i := range 50 {
		all = append(all, denied(fmt.Sprintf("192.0.2.%d:80", i)))
	}
	got := summary(t, all...)
	if n := strings.Count(got, "\n"); n != 1+maxLines+1 || !strings.HasSuffix(got, "… and 30 more\n") {
		t.Errorf("%d lines:\n%s", n, got)
	}
}

// A command that names ever new places costs no more than so much.
func TestTallyIsBounded(t *testing.T) {
	tally := newTally()
	for i := range maxTallied + 10 {
		tally.add(events.Event{Decision: &events.DNSDecision{Name: fmt.Sprint(i)}})
	}
	if r := tally.result(); len(r.DNSRefused) != maxTallied || r.Lost != 10 {
		t.Errorf("%d kept, %d lost", len(r.DNSRefused), r.Lost)
	}
}
