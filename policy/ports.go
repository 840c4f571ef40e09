// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Protocol is an IANA protocol number.
type Protocol uint8

const (
	AnyProtocol Protocol = 0
	TCP         Protocol = 6
	UDP         Protocol = 17
)

func (p Protocol) String() string {
	switch p {
	case AnyProtocol:
		return "any"
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	}
	return strconv.Itoa(int(p))
}

// Ports is an inclusive range of destination ports. Protocol is TCP, UDP, or
// AnyProtocol for both.
type Ports struct {
	First, Last uint16
	Protocol    Protocol
}

// ParsePorts reads "443", "443/tcp" or "8000-8100/udp".
func ParsePorts(s string) (Ports, error) {
	numbers, protocol, scoped := strings.Cut(s, "/")
	p := Ports{}
	if scoped {
		switch strings.ToLower(protocol) {
		case "tcp":
			p.Protocol = TCP
		case "udp":
			p.Protocol = UDP
		default:
			return Ports{}, fmt.Errorf("ports %s: protocol %s is neither tcp nor udp", quote(s), quote(protocol))
		}
	}
	first, last, isRange := strings.Cut(numbers, "-")
	if !isRange {
		last = first
	}
	var err error
	if p.First, err = parsePort(first); err == nil {
		p.Last, err = parsePort(last)
	}
	if err == nil {
		err = p.check()
	}
	if err != nil {
		return Ports{}, fmt.Errorf("ports %s: %v", quote(s), err)
	}
	return p, nil
}

func parsePort(s string) (uint16, error) {
	// ParseUint accepts neither signs nor spaces, but it does take leading
	// zeros, which other programs read as octal.
	if len(s) > 1 && s[0] == '0' {
		return 0, fmt.Errorf("leading zero in %s", quote(s))
	}
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("%s is not a port number (write 443, 443/tcp or 8000-8100/udp)", quote(s))
	}
	return uint16(n), nil
}

// check refuses what no text can say: ranges that never match, and 0 alone,
// which is how an unset number arrives from the wire. 0 is a legal first
// port, so that 0-65535/tcp is all of TCP.
func (p Ports) check() error {
	switch {
	case p.First > p.Last:
		return fmt.Errorf("first port %d is above last port %d", p.First, p.Last)
	case p.Last == 0:
		return errors.New("0 is not a port")
	case p.Protocol != AnyProtocol && p.Protocol != TCP && p.Protocol != UDP:
		return fmt.Errorf("protocol %d has no ports here (tcp, udp or both)", p.Protocol)
	}
	return nil
}

// String returns the form that ParsePorts reads.
func (p Ports) String() string {
	s := strconv.Itoa(int(p.First))
	if p.Last != p.First {
		s += "-" + strconv.Itoa(int(p.Last))
	}
	if p.Protocol != AnyProtocol {
		s += "/" + p.Protocol.String()
	}
	return s
}

// MarshalText returns the form that ParsePorts reads.
func (p Ports) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText reads what ParsePorts reads.
func (p *Ports) UnmarshalText(b []byte) (err error) {
	*p, err = ParsePorts(string(b))
	return err
}

// contains reports whether the range covers a destination port of a protocol
// that has ports.
func (p Ports) contains(protocol Protocol, port uint16) bool {
	if protocol != TCP && protocol != UDP {
		return false
	}
	return (p.Protocol == AnyProtocol || p.Protocol == protocol) && p.First <= port && port <= p.Last
}

func (p Ports) compare(q Ports) int {
	return cmp.Or(cmp.Compare(p.First, q.First), cmp.Compare(p.Last, q.Last), cmp.Compare(p.Protocol, q.Protocol))
}

// samePorts compares two lists as sets: their order says nothing.
func samePorts(a, b []Ports) bool {
	if slices.Equal(a, b) {
		return true
	}
	return len(a) == len(b) && slices.Equal(slices.SortedFunc(slices.Values(a), Ports.compare),
		slices.SortedFunc(slices.Values(b), Ports.compare))
}

func joinPorts(ports []Ports) string {
	texts := make([]string, len(ports))
	for i, p := range ports {
		texts[i] = p.String()
	}
	return strings.Join(texts, ",")
}

// checkReplyPorts holds replies_udp to what its name says.
func checkReplyPorts(p Ports) error {
	if err := p.check(); err != nil {
		return err
	}
	if p.Protocol == TCP {
		return errors.New("TCP is answered anyway; these are UDP ports")
	}
	return nil
}
