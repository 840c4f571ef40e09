// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

// specFile is the example of the documentation, with every key.
const specFile = `# /etc/netfence/policies/agents.yaml
version: 1
match: {tenant: acme, tier: 5}
priority: 10
mode: allowlist
audit: false
allow:
  - 10.0.0.0/16
  - {cidr: 192.0.2.10, ports: [5432/tcp], ttl: 10m}
  - pypi.org:443               # a name here is a domain rule
  - set:npm
  - "[2001:db8::/32]:443/udp"
  - {cidr: 198.51.100.0/24, expires_at: "2030-01-02T03:04:05Z"}
  - {domain: example.net, include_subdomains: true}
deny:
  - 10.0.9.0/24
  - evil.example
sets:
  npm: [registry.npmjs.org, 203.0.113.0/24]
replies: deny
replies_udp: [5060/udp, 7000-7100]
loopback: allow
source: [10.1.0.0/24, "02:00:00:00:00:01"]
dns:
  mode: denylist
  allow: ["*.pythonhosted.org", {domain: github.com, ports: [443, 22/tcp]}, {domain: db.corp, private: true}, {domain: "*.co.uk", force: true}]
  deny: ["evil.pythonhosted.org"]
  upstreams: [192.0.2.53, "[2001:db8::53]:5353"]
  refuse_with: refused
  forward: [{zone: cluster.local, to: [10.96.0.10]}, {zone: corp, to: original}]
`

func specPolicy() *Policy {
	p443 := []Ports{{443, 443, AnyProtocol}}
	return &Policy{
		Mode: ModeAllowlist,
		Allow: []Rule{
			{Prefix: netip.MustParsePrefix("10.0.0.0/16")},
			{Prefix: netip.MustParsePrefix("192.0.2.10/32"), Ports: []Ports{{5432, 5432, TCP}}, TTL: 10 * time.Minute},
			{Prefix: netip.MustParsePrefix("203.0.113.0/24")},
			{Prefix: netip.MustParsePrefix("2001:db8::/32"), Ports: []Ports{{443, 443, UDP}}},
			{Prefix: netip.MustParsePrefix("198.51.100.0/24"), ExpiresAt: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)},
		},
		Deny:       []Rule{{Prefix: netip.MustParsePrefix("10.0.9.0/24")}},
		Replies:    RepliesDeny,
		RepliesUDP: []Ports{{5060, 5060, UDP}, {7000, 7100, AnyProtocol}},
		Loopback:   LoopbackAllow,
		Source:     []Source{{Prefix: netip.MustParsePrefix("10.1.0.0/24")}, {MAC: [6]byte{2, 0, 0, 0, 0, 1}}},
		DNS: DNS{
			Mode: DNSDenylist,
			Allow: []DomainRule{
				{Domain: "pypi.org", Ports: p443},
				{Domain: "registry.npmjs.org"},
				{Domain: "example.net", IncludeSubdomains: true},
				{Domain: "*.pythonhosted.org"},
				{Domain: "github.com", Ports: []Ports{{443, 443, AnyProtocol}, {22, 22, TCP}}},
				{Domain: "db.corp", Private: true},
				{Domain: "*.co.uk", Force: true},
			},
			Deny:       []DomainRule{{Domain: "evil.example"}, {Domain: "evil.pythonhosted.org"}},
			Upstreams:  []netip.AddrPort{netip.MustParseAddrPort("192.0.2.53:53"), netip.MustParseAddrPort("[2001:db8::53]:5353")},
			RefuseWith: RefuseRefused,
			Forward: []ZoneForward{
				{Zone: "cluster.local", To: []netip.AddrPort{netip.MustParseAddrPort("10.96.0.10:53")}},
				{Zone: "corp", Original: true},
			},
		},
	}
}

func TestParseFile(t *testing.T) {
	f, err := ParseFile("agents.yaml", []byte(specFile))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(f.Policy, specPolicy()) {
		t.Errorf("policy = %+v\nwant %+v", f.Policy, specPolicy())
	}
	if f.Name != "agents.yaml" || f.Priority != 10 || len(f.Warnings) > 0 ||
		!reflect.DeepEqual(f.Match, map[string]string{"tenant": "acme", "tier": "5"}) ||
		!reflect.DeepEqual(f.Sets, Sets{"npm": {"registry.npmjs.org", "203.0.113.0/24"}}) {
		t.Errorf("file = %+v", f)
	}
	for _, tt := range []struct {
		metadata map[string]string
		want     bool
	}{
		{map[string]string{"tenant": "acme", "tier": "5", "more": ""}, true},
		{map[string]string{"tenant": "acme"}, false},
		{map[string]string{"tenant": "other", "tier": "5"}, false},
		{nil, false},
	} {
		if got := f.Matches(tt.metadata); got != tt.want {
			t.Errorf("Matches(%v) = %v", tt.metadata, got)
		}
	}
	if !(&File{}).Matches(nil) {
		t.Error("an empty match does not match")
	}
}

func TestUnsetDNSMode(t *testing.T) {
	for mode, want := range map[Mode]DNSMode{
		ModeAllowlist: DNSAllowlist, ModeDenylist: DNSDenylist, ModeDisabled: DNSDisabled, ModeBlockAll: DNSAllowlist,
	} {
		for _, dns := range []string{"", "dns:\n", "dns: {allow: [a.example]}\n"} {
			f, err := ParseFile("f.yaml", []byte(dns+"mode: "+mode.String()))
			if err != nil {
				t.Fatal(err)
			}
			if f.Policy.DNS.Mode != want {
				t.Errorf("%q mode %v: dns mode %v, want %v", dns, mode, f.Policy.DNS.Mode, want)
			}
		}
	}
}

var badFiles = []struct{ text, want string }{
	{"", "policy f.yaml: the file is empty"},
	{"# only a comment\n", "policy f.yaml: the file is empty"},
	{"- a\n", "line 1: expected a mapping, found a list"},
	{"priority: 1\n", "line 1: mode is missing (one of block-all, allowlist, denylist, disabled)"},
	{"mode:\n", "line 1: expected a single value, found nothing"},
	{"mode: open\n", `line 1: mode "open": unknown (one of block-all, allowlist, denylist, disabled)`},
	{"mode: allowlist\nmode: disabled\n", `line 2: key "mode" comes twice`},
	{"mode: allowlist\nalow: []\n", `line 2: unknown key "alow"; did you mean allow?`},
	{"mode: allowlist\nzebra: []\n", `line 2: unknown key "zebra" (one of version, match, `},
	{"mode: allowlist\ndns:\n  upstream: []\n", `line 3: dns: unknown key "upstream"; did you mean upstreams?`},
	{"mode: allowlist\n---\nmode: disabled\n", "line 2: a second document (one file, one policy)"},
	{"version: 2\nmode: allowlist\n", "line 1: version 2: unknown (this is version 1)"},
	{"mode: allowlist\nmatch: {a: [b]}\n", `line 2: match "a": expected a single value, found a list`},
	{"mode: allowlist\npriority: high\n", `line 2: "high" is not a whole number`},
	{"mode: allowlist\naudit: yes\n", `line 2: "yes" is neither true nor false`},
	{"mode: allowlist\nallow: 10.0.0.0/8\n", `line 2: allow: expected a list, found "10.0.0.0/8"`},
	{"mode: allowlist\nallow:\n- 10.0.0.0/8\n- 10.0.0.1/8\n", "line 4: allow rule 2: prefix 10.0.0.1/8 has host bits set; did you mean 10.0.0.0/8?"},
	{"mode: allowlist\ndeny:\n- {cidr: 10.0.0.0/8,\n   prots: [1]}\n", `line 4: deny rule 1: address rule: unknown key "prots"; did you mean ports?`},
	{"mode: allowlist\nallow: [{ports: [443]}]\n", "line 2: allow rule 1: cidr or domain is missing"},
	{"mode: allowlist\nallow: [{cidr: 10.0.0.0/8, ports: []}]\n", "line 2: allow rule 1: ports: none are listed"},
	{"mode: allowlist\nallow: [{cidr: 10.0.0.0/8, ttl: 0s}]\n", `allow rule 1: ttl "0s" is not a positive duration`},
	{"mode: allowlist\nallow: [{cidr: 10.0.0.0/8, expires_at: soon}]\n", `allow rule 1: expires_at "soon" is not a time`},
	{"mode: allowlist\nallow: [com]\n", "allow rule 1: domain com: com is a public suffix"},
	{"mode: denylist\ndeny: [a.example:22]\n", "deny rule 1: domain a.example: a denied name has no addresses to bind ports to"},
	{"mode: allowlist\ndns: {allow: [10.0.0.0/8]}\n", "line 2: dns allow rule 1: 10.0.0.0/8 is an address; here only names stand (write it in allow)"},
	{"mode: allowlist\ndns: {mode: proxy}\n", "line 2: dns.mode proxy needs a remote control plane"},
	{"mode: allowlist\ndns: {upstreams: [dns.example]}\n", `line 2: upstreams entry 1: server "dns.example" is not an address`},
	{"mode: allowlist\ndns: {forward: [{zone: corp}]}\n", "dns forward entry 1: zone corp: to is a list of servers or original"},
	{"mode: allowlist\nallow: [set:nmp]\nsets: {npm: []}\n", `line 2: allow rule 1: set "nmp": not defined; did you mean npm?`},
	{"mode: allowlist\nsets: {npm: [10.0.0.1/8]}\n", "line 2: set npm rule 1: prefix 10.0.0.1/8 has host bits set"},
	{"mode: allowlist\nsets: {a: [set:a]}\n", `line 2: set a rule 1: "set:a": a set holds rules, not sets`},
	{"mode: allowlist\nsets: {a b: []}\n", `line 2: set "a b": a name is made of letters`},
	{"mode: allowlist\nsource: [\"33:33:00:00:00:01\"]\n", "source entry 1: source 33:33:00:00:00:01: not the MAC address of one device"},
	{"mode: allowlist\nreplies_udp: [80/tcp]\n", "replies_udp entry 1: TCP is answered anyway"},
	{"mode: allowlist\nallow: &a [*a]\n", "line 2: allow rule 1: expected a single value, found a list"},
	{"mode: allowlist\n<<: {audit: true}\n", `line 2: unknown key "<<"`},
	{"mode: allowlist\nallow: [\n", "line 2: did not find expected node content"},
}

func TestBadFiles(t *testing.T) {
	for _, tt := range badFiles {
		f, err := ParseFile("f.yaml", []byte(tt.text))
		if err == nil {
			t.Errorf("%q: accepted as %+v", tt.text, f.Policy)
			continue
		}
		if !strings.HasPrefix(err.Error(), "policy f.yaml: ") || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q:\n got %v\nwant %v", tt.text, err, tt.want)
		}
	}
}

func TestFileBounds(t *testing.T) {
	if _, err := ParseFile("f.yaml", make([]byte, MaxFile+1)); err == nil {
		t.Error("a file beyond MaxFile is accepted")
	}
	// A set of many, used many times: a small file that would become large.
	bomb := "mode: allowlist\nsets:\n  a: [" + strings.Repeat("10.0.0.1,", 10_000) + "]\nallow: [" + strings.Repeat("set:a,", 10_000) + "]\n"
	if _, err := ParseFile("f.yaml", []byte(bomb)); err == nil || !strings.Contains(err.Error(), "more than 1048576 rules") {
		t.Errorf("set bomb: %v", err)
	}
	// Ten levels of ten aliases: the schema expands none of them.
	laughs := "mode: allowlist\nmatch: {a: x}\nallow:\n- &a0 10.0.0.1\n"
	for i := range 10 {
		laughs += "- &a" + string(rune('1'+i)) + " [" + strings.Repeat("*a"+string(rune('0'+i))+",", 10) + "]\n"
	}
	if _, err := ParseFile("f.yaml", []byte(laughs)); err == nil || !strings.Contains(err.Error(), "allow rule 2") {
		t.Errorf("alias bomb: %v", err)
	}
}

func TestAliases(t *testing.T) {
	f, err := ParseFile("f.yaml", []byte("mode: allowlist\nallow: &list [10.0.0.0/8]\ndeny: *list\n"))
	if err != nil || len(f.Policy.Allow) != 1 || len(f.Policy.Deny) != 1 {
		t.Errorf("%+v, %v", f, err)
	}
}

func TestSets(t *testing.T) {
	shared, err := ParseSets("sets.yaml", []byte("version: 1\nsets:\n  npm: [registry.npmjs.org]\n  lan: [10.0.0.0/8, \"192.0.2.1:53/udp\"]\n"))
	if err != nil {
		t.Fatal(err)
	}
	f, err := shared.ParseFile("f.yaml", []byte("mode: allowlist\nallow: [set:npm, set:lan]\nsets: {npm: [own.example]}\ndns: {deny: [set:npm]}\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := &Policy{
		Mode: ModeAllowlist,
		Allow: []Rule{
			{Prefix: netip.MustParsePrefix("10.0.0.0/8")},
			{Prefix: netip.MustParsePrefix("192.0.2.1/32"), Ports: []Ports{{53, 53, UDP}}},
		},
		DNS: DNS{Allow: []DomainRule{{Domain: "own.example"}}, Deny: []DomainRule{{Domain: "own.example"}}},
	}
	if !reflect.DeepEqual(f.Policy, want) {
		t.Errorf("got %+v, want %+v: the file's own set goes first", f.Policy, want)
	}
	if _, err := shared.ParseFile("f.yaml", []byte("mode: allowlist\ndns: {allow: [set:lan]}\n")); err == nil {
		t.Error("addresses of a set are accepted in the dns section")
	}
	for text, want := range map[string]string{
		"":                               "sets s.yaml: the file is empty",
		"mode: allowlist\n":              `sets s.yaml: line 1: unknown key "mode"`,
		"sets: {a: [b.example, bad_/x]}": "sets s.yaml: line 1: set a rule 2: ",
	} {
		if _, err := ParseSets("s.yaml", []byte(text)); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}

func TestFileWarnings(t *testing.T) {
	f, err := ParseFile("f.yaml", []byte("mode: denylist\ndeny: [evil.example]\ndns: {mode: disabled}\n"))
	if err != nil || len(f.Warnings) != 1 {
		t.Errorf("%+v, %v: want one warning", f, err)
	}
}

func TestPolicyInAnotherFile(t *testing.T) {
	var config struct {
		Default Policy `yaml:"default_policy"`
	}
	if err := yaml.Unmarshal([]byte("default_policy:\n  mode: allowlist\n  allow: [10.0.0.0/8, a.example]\n"), &config); err != nil {
		t.Fatal(err)
	}
	want := Policy{Mode: ModeAllowlist, Allow: []Rule{{Prefix: netip.MustParsePrefix("10.0.0.0/8")}},
		DNS: DNS{Allow: []DomainRule{{Domain: "a.example"}}}}
	if !reflect.DeepEqual(config.Default, want) {
		t.Errorf("got %+v, want %+v", config.Default, want)
	}
	err := yaml.Unmarshal([]byte("default_policy:\n  mode: allowlist\n  match: {a: b}\n"), &config)
	if err == nil || !strings.Contains(err.Error(), `line 3: unknown key "match"`) {
		t.Errorf("match in a policy: %v", err)
	}
}
