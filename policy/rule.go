// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"errors"
	"fmt"
	"strings"
)

// maxPorts bounds the port ranges of one rule, so that a chain has room for
// covering prefixes.
const maxPorts = 64

// Parse reads a rule in short form: "10.0.0.0/8", "10.0.0.0/8:443",
// "[2001:db8::/32]:443/udp", "pypi.org", "*.pypi.org:443". A name makes a
// domain rule; exactly one of the two results is not nil.
func Parse(s string) (*Rule, *DomainRule, error) {
	if scheme, _, isURL := strings.Cut(s, "://"); isURL {
		return nil, nil, fmt.Errorf("rule %s: is a URL (write the name and the port alone, without %s)", quote(s), quote(scheme+"://"))
	}
	host, portText, err := splitPorts(s)
	if err != nil {
		return nil, nil, fmt.Errorf("rule %s: %v", quote(s), err)
	}
	var ports []Ports
	if portText != "" {
		p, err := ParsePorts(portText)
		if err != nil {
			return nil, nil, fmt.Errorf("rule %s: %v", quote(s), err)
		}
		ports = []Ports{p}
	}
	if !isName(host) {
		prefix, _, err := ParsePrefix(host, RefuseHostBits)
		if err != nil {
			return nil, nil, err
		}
		return &Rule{Prefix: prefix, Ports: ports}, nil, nil
	}
	domain, err := ParseDomain(host)
	if err != nil {
		return nil, nil, err
	}
	return nil, &DomainRule{Domain: domain, Ports: ports}, nil
}

// splitPorts cuts the port off a short form. The colons of a bare IPv6 prefix
// are its own; with a port it stands in brackets.
func splitPorts(s string) (host, ports string, err error) {
	if rest, ok := strings.CutPrefix(s, "["); ok {
		host, ports, ok = strings.Cut(rest, "]")
		switch {
		case !ok:
			return "", "", errors.New("no closing bracket")
		case !strings.Contains(host, ":"):
			return "", "", errors.New("brackets are for IPv6 (write 10.0.0.0/8:443)")
		case ports == "":
			return host, "", nil
		case len(ports) == 1 || ports[0] != ':':
			return "", "", errors.New("after the bracket comes a port ([2001:db8::/32]:443)")
		}
		return host, ports[1:], nil
	}
	switch strings.Count(s, ":") {
	case 0:
		return s, "", nil
	case 1:
		host, ports, _ = strings.Cut(s, ":")
		if ports == "" {
			return "", "", errors.New("no port after the colon")
		}
		return host, ports, nil
	}
	// 2001:db8::/32:443 is a likely slip.
	if strings.Contains(s[:strings.LastIndexByte(s, ':')], "/") {
		return "", "", errors.New("an IPv6 prefix with a port stands in brackets ([2001:db8::/32]:443)")
	}
	return s, "", nil
}

// isName tells names from addresses. What holds a slash or a colon can only be
// meant as an address; so is what has digits and dots alone.
func isName(host string) bool {
	return host != "" && !strings.ContainsAny(host, "/:") && strings.Trim(host, "0123456789.") != ""
}

// String returns the rule as people write it.
func (r *Rule) String() string {
	s := r.Prefix.String()
	if len(r.Ports) > 0 {
		s += " ports " + joinPorts(r.Ports)
	}
	return s
}

// same reports whether two rules of one list are about the same traffic.
func (r *Rule) same(o *Rule) bool { return r.Prefix == o.Prefix && samePorts(r.Ports, o.Ports) }

func (r *Rule) check() error {
	if err := checkPrefix(r.Prefix); err != nil {
		return err
	}
	if r.TTL < 0 {
		return fmt.Errorf("ttl %v is negative", r.TTL)
	}
	if r.Deadline < 0 {
		return fmt.Errorf("deadline %v is negative", r.Deadline)
	}
	return checkPorts(r.Ports)
}

func checkPorts(ports []Ports) error {
	if len(ports) > maxPorts {
		return fmt.Errorf("%d port ranges, at most %d", len(ports), maxPorts)
	}
	for _, p := range ports {
		if err := p.check(); err != nil {
			return fmt.Errorf("ports %s: %v", p, err)
		}
	}
	return nil
}
