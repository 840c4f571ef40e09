// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/netfence/netfence/internal/datapath"
	"github.com/netfence/netfence/policy"
)

func audited(p policy.Policy) policy.Policy {
	p.Audit = true
	return p
}

// seenBy is what a client sees of an answer but for its own id.
func seenBy(m *dns.Msg) string {
	m = m.Copy()
	m.Id = 0
	return m.String()
}

// TestAudit holds that answers of a policy in audit are those of a policy that filters no names, whatever it would have
// done, and that it is told of what that is.
func TestAudit(t *testing.T) {
	private := []string{"$ 60 IN A 10.0.0.1", "$ 60 IN A 192.0.2.1"}
	limit := func() error {
		return fmt.Errorf("learn: %w", &datapath.LimitError{Attachment: "a", Limit: "learned", Max: 1})
	}
	for _, tt := range []struct {
		name    string
		policy  policy.Policy
		options Options
		query   string
		qtype   uint16
		answer  []string
		refuse  func() error
		against string // "": it would be allowed
		learned []string
		tells   bool // of an incident, too
	}{
		{name: "allowed", policy: allowlist("a.example"), query: "a.example", answer: []string{"$ 60 IN A 192.0.2.1"}, learned: []string{"192.0.2.1"}},
		{name: "no rule", policy: allowlist("b.example"), query: "a.example", answer: []string{"$ 60 IN A 192.0.2.1"}, against: "no rule allows a.example"},
		{name: "deny rule", policy: denylist("a.example"), query: "a.example", answer: []string{"$ 60 IN A 192.0.2.1"}, against: "deny rule a.example"},
		{name: "block-all", policy: *policy.BlockAll(), query: "a.example", answer: []string{"$ 60 IN A 192.0.2.1"}, against: "mode block-all"},
		{name: "private answer", policy: allowlist("a.example"), query: "a.example", answer: private, against: "would remove 10.0.0.1 from the answer: private", learned: []string{"192.0.2.1"}},
		{name: "private answer to a refused name", policy: allowlist("b.example"), query: "a.example", answer: private, against: "no rule allows a.example"},
		{name: "ech", policy: allowlist("a.example"), query: "a.example", qtype: dns.TypeHTTPS, answer: []string{"$ 60 IN HTTPS 1 . ech=AAAA ipv4hint=192.0.2.1"}, learned: []string{"192.0.2.1"}},
		{name: "an alias that is denied", policy: denylist("b.example"), query: "a.example", answer: []string{"$ 60 IN CNAME b.example.", "b.example. 60 IN A 192.0.2.1"}, against: "deny rule b.example, of which it is an alias"},
		{name: "aliases in a circle", policy: allowlist("a.example"), query: "a.example", answer: []string{"$ 60 IN CNAME b.example.", "b.example. 60 IN CNAME a.example."}, against: "the aliases go round in a circle"},
		{name: "canary", policy: allowlist("*"), query: canary, answer: []string{"$ 60 IN A 192.0.2.1"}, against: canary + " tells browsers to use this resolver"},
		{name: "discovery", policy: allowlist("*"), query: "_dns." + discovery, qtype: dns.TypeSVCB, answer: []string{"$ 60 IN SVCB 1 dns.example."}, against: discovery + " is answered here"},
		{name: "a name that rules cannot spell", policy: allowlist("*"), query: `a\.b.example`, answer: []string{"$ 60 IN A 192.0.2.1"}, against: `a\.b.example. has characters that no rule can name`},
		{name: "learning limit", policy: allowlist("a.example"), query: "a.example", answer: []string{"$ 60 IN A 192.0.2.1"}, refuse: limit, tells: true, against: "limits.learned is reached: "},
		{name: "a policy that keeps changing", policy: allowlist("a.example"), query: "a.example", answer: []string{"$ 60 IN A 192.0.2.1"}, refuse: func() error { return datapath.ErrStale }, against: keptChanging},
		{name: "control plane allows", policy: byProxy, options: Options{Remote: answers(RemoteAnswer{Allow: true, Learn: true})}, query: "a.example", answer: []string{"$ 60 IN A 192.0.2.1"}, learned: []string{"192.0.2.1"}},
		{name: "control plane gives others", policy: byProxy, options: Options{Remote: answers(RemoteAnswer{Allow: true, Learn: true, Addrs: addrs("10.0.0.9")})}, query: "a.example", answer: []string{"$ 60 IN A 192.0.2.1"}, learned: []string{"10.0.0.9"}},
		{name: "control plane denies", policy: byProxy, options: Options{Remote: answers(RemoteAnswer{})}, query: "a.example", answer: []string{"$ 60 IN A 192.0.2.1"}, against: "the control plane denies a.example"},
		{name: "no control plane", policy: byProxy, query: "a.example", answer: []string{"$ 60 IN A 192.0.2.1"}, against: "dns mode proxy without a control plane to ask"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.qtype == 0 {
				tt.qtype = dns.TypeA
			}
			up := resolve(t, records(t, tt.answer...))
			free := serve(t, Options{}, []*resolver{up}, without)
			w := serve(t, tt.options, []*resolver{up}, audited(tt.policy))
			w.kernel.refusing(tt.refuse)
			if got, want := seenBy(w.ask(t, tt.query, tt.qtype)), seenBy(free.ask(t, tt.query, tt.qtype)); got != want {
				t.Errorf("answered\n%s\nwhere nobody filters it is\n%s", got, want)
			}
			if tt.tells {
				w.mu.Lock()
				if len(w.events) == 0 || w.events[0].Incident == nil || w.events[0].Incident.Kind != "learned_limit" {
					t.Errorf("told %+v", w.events)
				}
				w.events = w.events[1:]
				w.mu.Unlock()
			}
			d := w.decision(t)
			if would := tt.against != ""; d.WouldDeny != would || d.Allowed == would || would && !strings.HasPrefix(d.Reason, tt.against) {
				t.Errorf("decision: %+v, want %q", d, tt.against)
			}
			if got := addrs(tt.learned...); !slices.Equal(d.Learned, got) {
				t.Errorf("told as learned: %v", d.Learned)
			}
			var learned []string
			for _, l := range w.kernel.taught() {
				for _, a := range l.Addrs {
					learned = append(learned, a.String())
				}
			}
			if !slices.Equal(learned, tt.learned) {
				t.Errorf("learned %v, want %v", learned, tt.learned)
			}
			want := Counts{Allowed: 1}
			if tt.against != "" {
				want.WouldDeny = 1
			}
			if c := w.Counts("a"); c != want {
				t.Errorf("counts: %+v, want %+v", c, want)
			}
		})
	}
}

// TestAuditInAChain holds that who is in audit never refuses, and that the others do.
func TestAuditInAChain(t *testing.T) {
	wide, narrow := allowlist("*"), allowlist("b.example")
	private := allowlist("a.example")
	private.DNS.Allow[0].Private = true
	for _, tt := range []struct {
		name     string
		policies []policy.Policy
		rcode    int
		answer   []string
		learned  string
		told     []string
	}{
		{"inner would refuse", []policy.Policy{audited(narrow), wide}, dns.RcodeSuccess, []string{"192.0.2.1"}, "b[192.0.2.1]",
			[]string{"a would deny", "b allowed"}},
		{"outer would refuse", []policy.Policy{wide, audited(narrow)}, dns.RcodeSuccess, []string{"192.0.2.1"}, "a[192.0.2.1]",
			[]string{"a allowed", "b would deny"}},
		{"outer refuses", []policy.Policy{audited(wide), narrow}, dns.RcodeNameError, []string{}, "",
			[]string{"b refused", "a refused"}},
		{"inner refuses", []policy.Policy{narrow, audited(wide)}, dns.RcodeNameError, []string{}, "",
			[]string{"a refused"}},
		{"both in audit", []policy.Policy{audited(narrow), audited(private)}, dns.RcodeSuccess, []string{"192.0.2.1", "10.0.0.1"}, "b[192.0.2.1 10.0.0.1]",
			[]string{"a would deny", "b allowed"}},
		{"removed by who is not in audit", []policy.Policy{audited(private), wide}, dns.RcodeSuccess, []string{"192.0.2.1"}, "b[192.0.2.1]a[192.0.2.1]",
			[]string{"a allowed", "b allowed"}},
		{"would be removed by who is", []policy.Policy{private, audited(wide)}, dns.RcodeSuccess, []string{"192.0.2.1", "10.0.0.1"}, "a[192.0.2.1 10.0.0.1]b[192.0.2.1]",
			[]string{"a allowed", "b would deny"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			up := resolve(t, records(t, "$ 60 IN A 192.0.2.1", "$ 60 IN A 10.0.0.1"))
			w := serve(t, Options{}, []*resolver{up}, tt.policies...)
			m := w.ask(t, "a.example", dns.TypeA)
			if m.Rcode != tt.rcode || !slices.Equal(rdata(m.Answer), tt.answer) {
				t.Errorf("answer: %v", m)
			}
			learned := ""
			for _, l := range w.kernel.taught() {
				learned += l.Member.ID + fmt.Sprint(l.Addrs)
			}
			if learned != tt.learned {
				t.Errorf("learned %s, want %s", learned, tt.learned)
			}
			var told []string
			for _, e := range w.seen() {
				how := "refused"
				switch {
				case e.Decision == nil:
					continue
				case e.Decision.WouldDeny:
					how = "would deny"
				case e.Decision.Allowed:
					how = "allowed"
				}
				told = append(told, e.Attachment+" "+how)
			}
			if !slices.Equal(told, tt.told) {
				t.Errorf("told %q, want %q", told, tt.told)
			}
		})
	}
}

// TestAuditDoesNotHideALimit holds that whoever is not in audit is still refused what cannot be learned.
func TestAuditDoesNotHideALimit(t *testing.T) {
	up := resolve(t, records(t, "$ 60 IN A 192.0.2.1"))
	w := serve(t, Options{}, []*resolver{up}, audited(allowlist("*")), allowlist("*"))
	w.kernel.refusing(func() error { return errors.New("full") })
	if m := w.ask(t, "a.example", dns.TypeA); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("answer: %v", m)
	}
}
