// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
	"golang.org/x/net/publicsuffix"
)

const (
	maxName  = 253 // RFC 1035 section 2.3.4, in text without the final dot
	maxLabel = 63
)

// uts46 maps what people write to what DNS holds: case, width and the other
// full stops. Underscores (_dmarc, _tcp) are names too, hence not strict.
var uts46 = idna.New(idna.MapForLookup(), idna.BidiRule(), idna.Transitional(false), idna.StrictDomainName(false))

// ParseDomain reads the name of a domain rule and returns its canonical form;
// see [DomainRule].
func ParseDomain(s string) (string, error) {
	if s == "*" {
		return s, nil
	}
	name, isWildcard := strings.CutPrefix(s, "*.")
	name, err := parseName(name)
	if err != nil {
		return "", fmt.Errorf("domain %s: %v", quote(s), err)
	}
	if isWildcard {
		name = "*." + name
	}
	if len(name) > maxName {
		return "", fmt.Errorf("domain %s: longer than %d characters", quote(s), maxName)
	}
	return name, nil
}

// parseName reads a name without wildcard.
func parseName(s string) (string, error) {
	name, err := canonicalName(s)
	if err != nil {
		return "", err
	}
	if name == "" {
		return "", errors.New("empty name (write * for every name)")
	}
	for label := range strings.SplitSeq(name, ".") {
		for _, c := range []byte(label) {
			switch {
			case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_':
			case c == '*':
				return "", errors.New("a wildcard stands alone or as the whole first label (*.example.org)")
			default:
				return "", fmt.Errorf("character %q in a name", c)
			}
		}
		if strings.HasPrefix(label, "-") || strings.HasSuffix(label, "-") {
			return "", fmt.Errorf("label %s begins or ends with a hyphen", quote(label))
		}
	}
	// No top-level domain is a number; a mistyped address would be one.
	if last := name[strings.LastIndexByte(name, '.')+1:]; strings.Trim(last, "0123456789") == "" {
		return "", errors.New("the last label is a number (a mistyped address?)")
	}
	return name, nil
}

// canonicalName folds the forms in which one name may be written: case, a
// final dot, IDNA. It accepts whatever else a DNS query may ask for, but no
// escapes and no separators inside a label, which would make the labels of the
// text differ from those of the packet. The root is "".
func canonicalName(s string) (string, error) {
	if len(s) > 4*maxName { // before any work; a U-label is at most 4 bytes a character
		return "", errors.New("too long for a name")
	}
	plain, upper := true, false
	for _, c := range []byte(s) {
		switch {
		case c >= 0x80:
			plain = false
		case c <= ' ', c == '\\', c == 0x7f:
			return "", fmt.Errorf("character %q in a name", c)
		case 'A' <= c && c <= 'Z':
			upper = true
		}
	}
	if !plain {
		if !utf8.ValidString(s) { // which idna would map to something else
			return "", errors.New("not UTF-8")
		}
		ascii, err := uts46.ToASCII(s)
		if err != nil {
			return "", fmt.Errorf("not an internationalized name: %v", err)
		}
		return canonicalASCII(ascii)
	}
	if upper {
		s = strings.ToLower(s)
	}
	return canonicalASCII(s)
}

func canonicalASCII(s string) (string, error) {
	if s == "." {
		return "", nil
	}
	s = strings.TrimSuffix(s, ".")
	if len(s) > maxName {
		return "", fmt.Errorf("longer than %d characters", maxName)
	}
	length := 0
	for i := range len(s) {
		c := s[i]
		if c == '.' {
			if length == 0 {
				return "", errors.New("empty label (a dot too many)")
			}
			length = 0
			continue
		}
		if c <= ' ' || c == '\\' || c >= 0x7f {
			return "", fmt.Errorf("character %q in a name", c)
		}
		if length++; length > maxLabel {
			return "", fmt.Errorf("label longer than %d characters", maxLabel)
		}
	}
	if s != "" && length == 0 {
		return "", errors.New("empty label (a dot too many)")
	}
	return s, nil
}

// isPublicSuffix reports whether unrelated people register names below name.
// The list's default rule, which makes every unknown top-level name a suffix,
// does not count: corp and internal are somebody's own.
func isPublicSuffix(name string) bool {
	suffix, icann := publicsuffix.PublicSuffix(name)
	return suffix == name && (icann || strings.Contains(name, "."))
}

func (r *DomainRule) check(list Action) error {
	canonical, err := ParseDomain(r.Domain)
	if err != nil {
		return err
	}
	if canonical != r.Domain {
		return fmt.Errorf("domain %s is not in canonical form %s", quote(r.Domain), canonical)
	}
	if base := strings.TrimPrefix(r.Domain, "*."); !r.Force && isPublicSuffix(base) {
		return fmt.Errorf("domain %s: %s is a public suffix; unrelated people own the names below it (force: true if that is meant)", r.Domain, base)
	}
	if list == Deny && len(r.Ports) > 0 {
		return fmt.Errorf("domain %s: a denied name has no addresses to bind ports to (leave the ports out, or deny the addresses)", r.Domain)
	}
	return checkPorts(r.Ports)
}

func (r *DomainRule) same(o *DomainRule) bool {
	return r.Domain == o.Domain && samePorts(r.Ports, o.Ports)
}

// String returns the rule as people write it.
func (r *DomainRule) String() string {
	s := r.Domain
	if r.IncludeSubdomains {
		s += " and below"
	}
	if len(r.Ports) > 0 {
		s += " ports " + joinPorts(r.Ports)
	}
	return s
}

func (z *ZoneForward) check() error {
	canonical, err := parseName(z.Zone)
	switch {
	case err != nil:
		return fmt.Errorf("zone %s: %v", quote(z.Zone), err)
	case canonical != z.Zone:
		return fmt.Errorf("zone %s is not in canonical form %s", quote(z.Zone), canonical)
	case z.Original == (len(z.To) > 0):
		return fmt.Errorf("zone %s: to is a list of servers or original", z.Zone)
	case len(z.To) > maxUpstreams:
		return fmt.Errorf("zone %s: %d servers, at most %d", z.Zone, len(z.To), maxUpstreams)
	}
	for _, s := range z.To {
		if err := checkServer(s); err != nil {
			return fmt.Errorf("zone %s: %v", z.Zone, err)
		}
	}
	return nil
}
