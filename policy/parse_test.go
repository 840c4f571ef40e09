// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

func TestParsePrefix(t *testing.T) {
	for _, tt := range []struct {
		in, want, warning, err string
		bits                   HostBits
	}{
		{in: "10.0.0.0/8", want: "10.0.0.0/8"},
		{in: "192.0.2.1", want: "192.0.2.1/32"},
		{in: "0.0.0.0/0", want: "0.0.0.0/0"},
		{in: "2001:DB8::/32", want: "2001:db8::/32"},
		{in: "2001:db8::1", want: "2001:db8::1/128"},
		{in: "::/0", want: "::/0"},
		{in: "::ffff:10.0.0.0/104", want: "10.0.0.0/8"},
		{in: "::ffff:0:0/96", want: "0.0.0.0/0"},
		{in: "::ffff:192.0.2.1", want: "192.0.2.1/32"},
		{in: "::10.0.0.0/104", want: "::a00:0/104"},
		{in: "10.0.0.1/8", err: "prefix 10.0.0.1/8 has host bits set; did you mean 10.0.0.0/8?"},
		{in: "10.0.0.1/8", bits: MaskHostBits, want: "10.0.0.0/8", warning: "prefix 10.0.0.1/8 has host bits set; taken as 10.0.0.0/8"},
		{in: "::ffff:10.0.0.1/104", err: "prefix ::ffff:10.0.0.1/104 has host bits set; did you mean 10.0.0.0/8?"},
		{in: "2001:db8::1/32", bits: MaskHostBits, want: "2001:db8::/32", warning: "prefix 2001:db8::1/32 has host bits set; taken as 2001:db8::/32"},
		{in: "::ffff:10.0.0.0/8", bits: MaskHostBits, err: "an IPv4-mapped prefix has a length from 96 to 128"},
		{in: "10.0.0.0/33", err: "length is not a number from 0 to 32"},
		{in: "2001:db8::/129", err: "length is not a number from 0 to 128"},
		{in: "10.0.0.0/08", err: "length is not a number"},
		{in: "10.0.0.0/-1", err: "length is not a number"},
		{in: "10.0.0.0/", err: "length is not a number"},
		{in: "010.0.0.0/8", err: "is not an address"},
		{in: "10.0.0", err: "is not an address"},
		{in: "", err: "is not an address"},
		{in: " 10.0.0.1", err: "is not an address"},
		{in: "fe80::1%eth0", err: "a zone cannot be matched"},
		{in: "fe80::%eth0/10", err: "a zone cannot be matched"},
	} {
		got, warning, err := ParsePrefix(tt.in, tt.bits)
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("ParsePrefix(%q) = %v, %v, want error %q", tt.in, got, err, tt.err)
			}
			continue
		}
		if err != nil || got != netip.MustParsePrefix(tt.want) || warning != tt.warning {
			t.Errorf("ParsePrefix(%q) = %v, %q, %v, want %s, %q", tt.in, got, warning, err, tt.want, tt.warning)
		}
	}
}

func TestParsePorts(t *testing.T) {
	for in, want := range map[string]Ports{
		"443":           {443, 443, AnyProtocol},
		"443/tcp":       {443, 443, TCP},
		"53/UDP":        {53, 53, UDP},
		"8000-8100/udp": {8000, 8100, UDP},
		"1-1":           {1, 1, AnyProtocol},
		"0-65535/tcp":   {0, 65535, TCP},
	} {
		got, err := ParsePorts(in)
		if err != nil || got != want {
			t.Errorf("ParsePorts(%q) = %+v, %v, want %+v", in, got, err, want)
		}
	}
	for in, want := range map[string]string{
		"": "not a port number", "-1": "not a port number", "1-": "not a port number", "65536": "not a port number",
		"+80": "not a port number", " 80": "not a port number", "080": "leading zero", "0": "0 is not a port", "0-0": "0 is not a port",
		"90-80": "first port 90 is above last port 80", "80/sctp": `protocol "sctp" is neither tcp nor udp`, "80/": "neither tcp nor udp", "http": "not a port number",
	} {
		if got, err := ParsePorts(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParsePorts(%q) = %+v, %v, want error %q", in, got, err, want)
		}
	}
}

func TestParse(t *testing.T) {
	p443 := []Ports{{443, 443, AnyProtocol}}
	prefix := netip.MustParsePrefix
	for in, want := range map[string]any{
		"10.0.0.0/8":               &Rule{Prefix: prefix("10.0.0.0/8")},
		"10.0.0.0/8:443":           &Rule{Prefix: prefix("10.0.0.0/8"), Ports: p443},
		"192.0.2.1:443":            &Rule{Prefix: prefix("192.0.2.1/32"), Ports: p443},
		"2001:db8::/32":            &Rule{Prefix: prefix("2001:db8::/32")},
		"[2001:db8::/32]":          &Rule{Prefix: prefix("2001:db8::/32")},
		"[2001:db8::/32]:443/udp":  &Rule{Prefix: prefix("2001:db8::/32"), Ports: []Ports{{443, 443, UDP}}},
		"[::1]:80-90":              &Rule{Prefix: prefix("::1/128"), Ports: []Ports{{80, 90, AnyProtocol}}},
		"[::ffff:192.0.2.1]:443":   &Rule{Prefix: prefix("192.0.2.1/32"), Ports: p443},
		"::":                       &Rule{Prefix: prefix("::/128")},
		"pypi.org":                 &DomainRule{Domain: "pypi.org"},
		"pypi.org:443":             &DomainRule{Domain: "pypi.org", Ports: p443},
		"*.PyPI.org.:443":          &DomainRule{Domain: "*.pypi.org", Ports: p443},
		"*":                        &DomainRule{Domain: "*"},
		"localhost":                &DomainRule{Domain: "localhost"},
		"abcd":                     &DomainRule{Domain: "abcd"}, // hexadecimal, but no address
		"":                         "is not an address",
		"10.0.0.300":               "is not an address",
		"10.0.0.1/8":               "did you mean 10.0.0.0/8?",
		"2001:db8::/32:443":        "an IPv6 prefix with a port stands in brackets ([2001:db8::/32]:443)",
		"[2001:db8::/32":           "no closing bracket",
		"[2001:db8::/32]443":       "after the bracket comes a port",
		"[2001:db8::/32]:":         "after the bracket comes a port",
		"[2001:db8::]/32":          "after the bracket comes a port",
		"[10.0.0.1]:443":           "brackets are for IPv6",
		"10.0.0.1:":                "no port after the colon",
		"pypi.org:https":           "not a port number",
		"pypi.org/simple":          "is not an address",
		"https://pypi.org":         `rule "https://pypi.org": is a URL (write the name and the port alone, without "https://")`,
		"user@pypi.org":            `character '@' in a name`,
		"pypi.org:443:443":         "is not an address",
		":443":                     "is not an address",
		strings.Repeat("x", 10000): "too long",
	} {
		rule, domain, err := Parse(in)
		switch want := want.(type) {
		case *Rule:
			if err != nil || domain != nil || !reflect.DeepEqual(rule, want) {
				t.Errorf("Parse(%q) = %v, %v, %v, want %v", in, rule, domain, err, want)
			}
		case *DomainRule:
			if err != nil || rule != nil || !reflect.DeepEqual(domain, want) {
				t.Errorf("Parse(%q) = %v, %v, %v, want %v", in, rule, domain, err, want)
			}
		case string:
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("Parse(%q) = %v, %v, %v, want error %q", in, rule, domain, err, want)
			}
		}
	}
}

func TestParseDomain(t *testing.T) {
	for in, want := range map[string]string{
		"pypi.org":              "pypi.org",
		"PyPI.ORG.":             "pypi.org",
		"*.Example.org":         "*.example.org",
		"*":                     "*",
		"bücher.example":        "xn--bcher-kva.example",
		"BÜCHER.example":        "xn--bcher-kva.example",
		"XN--BCHER-KVA.example": "xn--bcher-kva.example",
		"*.bücher.example":      "*.xn--bcher-kva.example",
		"straße.example":        "xn--strae-oqa.example", // not transitional
		"例え。テスト":                "xn--r8jz45g.xn--zckzah",
		"ｐｙｐｉ.org":              "pypi.org",
		"_dmarc.example.org":    "_dmarc.example.org",
		"r3---sn.example":       "r3---sn.example",
		"1.example":             "1.example",
	} {
		if got, err := ParseDomain(in); err != nil || got != want {
			t.Errorf("ParseDomain(%q) = %q, %v, want %q", in, got, err, want)
		}
	}
	for in, want := range map[string]string{
		"": "empty name", ".": "empty name", "*.": "empty name", "a..b": "empty label", ".a.b": "empty label", "a.b..": "empty label",
		"**": "a wildcard stands alone", "*.*.a": "a wildcard stands alone", "a.*.b": "a wildcard stands alone", "a*.b": "a wildcard stands alone", "*a": "a wildcard stands alone", "＊.a": "a wildcard stands alone",
		"a b": "character ' '", "a/b": "character '/'", `a\.b`: `character '\\'`, "a\x00b": "character",
		"-a.b": "begins or ends with a hyphen", "a-.b": "begins or ends with a hyphen",
		"1.2.3.4": "the last label is a number", "host.5": "the last label is a number",
		strings.Repeat("a", 64) + ".b":                 "label longer than 63",
		strings.Repeat("abcdefg.", 32):                 "longer than 253",
		"*." + strings.Repeat("abcdefg.", 31) + "abcd": "longer than 253",
		"xn--a.ü.example":                              "not an internationalized name",
		"\xff.example":                                 "not UTF-8",
	} {
		if got, err := ParseDomain(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParseDomain(%q) = %q, %v, want error %q", in, got, err, want)
		}
	}
}

func TestPublicSuffix(t *testing.T) {
	for domain, suffix := range map[string]bool{
		"com": true, "*.com": true, "co.uk": true, "*.co.uk": true, "*.github.io": true,
		"example.com": false, "*.example.co.uk": false, "*": false, "localhost": false, "*.corp": false, "db.internal": false,
	} {
		r := DomainRule{Domain: domain}
		if err := r.check(Allow); (err != nil) != suffix {
			t.Errorf("%s: %v, want refused: %v", domain, err, suffix)
		}
		r.Force = true
		if err := r.check(Allow); err != nil {
			t.Errorf("%s with force: %v", domain, err)
		}
	}
}

func TestParseServer(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.53": "192.0.2.53:53", "192.0.2.53:5353": "192.0.2.53:5353", "2001:db8::53": "[2001:db8::53]:53",
		"[2001:db8::53]:5353": "[2001:db8::53]:5353", "::ffff:192.0.2.53": "192.0.2.53:53", "fe80::1%eth0": "[fe80::1%eth0]:53",
	} {
		if got, err := ParseServer(in); err != nil || got.String() != want {
			t.Errorf("ParseServer(%q) = %v, %v, want %s", in, got, err, want)
		}
	}
	for _, in := range []string{"", "dns.example", "192.0.2.53:", "192.0.2.53:0", "0.0.0.0", "::", "224.0.0.251", "ff02::fb", "192.0.2.0/24"} {
		if got, err := ParseServer(in); err == nil {
			t.Errorf("ParseServer(%q) = %v", in, got)
		}
	}
}

func TestEnums(t *testing.T) {
	for _, e := range []enum{modes, dnsModes, actions, replyModes, loopbackModes, refuseCodes} {
		for i, name := range e.names {
			if v, err := e.parse(name); err != nil || int(v) != i || e.text(v) != name {
				t.Errorf("%s %s: parsed as %d, %v", e.kind, name, v, err)
			}
		}
		if _, err := e.parse(""); err == nil {
			t.Errorf("%s: empty text is accepted", e.kind)
		}
		if _, err := e.marshal(uint8(len(e.names))); err == nil {
			t.Errorf("%s: a value beyond the last is marshalled", e.kind)
		}
	}
	if Mode(0) != ModeBlockAll || Action(0) != Deny || DNSMode(0) != DNSAllowlist || VerdictDeny != 0 {
		t.Error("a zero value is not the closed one")
	}
	if got := Mode(9).String(); got != "mode(9)" {
		t.Errorf("Mode(9) = %s", got)
	}
}
