// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"net/netip"
	"strings"
)

// HostBits says what ParsePrefix does with bits beyond the prefix length.
type HostBits uint8

const (
	RefuseHostBits HostBits = iota // an error: in our own files it is a mistake
	MaskHostBits                   // cleared, with a warning: as published, from the wire
)

// mapped4 is where IPv4 lives in a table of 128-bit addresses.
var mapped4 = netip.MustParsePrefix("::ffff:0:0/96")

// ParsePrefix reads a CIDR or a bare address. IPv4-mapped IPv6 becomes IPv4.
// The warning is empty unless host bits were masked.
func ParsePrefix(s string, bits HostBits) (prefix netip.Prefix, warning string, err error) {
	prefix, err = parsePrefix(s)
	if err != nil {
		return netip.Prefix{}, "", err
	}
	masked := prefix.Masked()
	if masked == prefix {
		return prefix, "", nil
	}
	if bits == RefuseHostBits {
		return netip.Prefix{}, "", fmt.Errorf("prefix %s has host bits set; did you mean %s?", s, masked)
	}
	return masked, fmt.Sprintf("prefix %s has host bits set; taken as %s", s, masked), nil
}

func parsePrefix(s string) (netip.Prefix, error) {
	address, _, isCIDR := strings.Cut(s, "/")
	addr, err := netip.ParseAddr(address)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%s is not an address or prefix (write 10.0.0.0/8, 192.0.2.1 or 2001:db8::/32)", quote(s))
	}
	if addr.Zone() != "" {
		return netip.Prefix{}, fmt.Errorf("prefix %s: a zone cannot be matched (leave %s out)", quote(s), quote("%"+addr.Zone()))
	}
	if !isCIDR {
		addr = addr.Unmap()
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	prefix, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("prefix %s: length is not a number from 0 to %d", quote(s), addr.BitLen())
	}
	if !addr.Is4In6() {
		return prefix, nil
	}
	// Shorter than /96 would be masked to an IPv6 prefix that has nothing to
	// do with the IPv4 address written there.
	if prefix.Bits() < mapped4.Bits() {
		return netip.Prefix{}, fmt.Errorf("prefix %s: an IPv4-mapped prefix has a length from 96 to 128 (write IPv4 prefixes as 10.0.0.0/8)", quote(s))
	}
	return netip.PrefixFrom(addr.Unmap(), prefix.Bits()-mapped4.Bits()), nil
}

// checkPrefix refuses what ParsePrefix would not have returned.
func checkPrefix(p netip.Prefix) error {
	switch {
	case !p.IsValid():
		return fmt.Errorf("prefix is missing")
	case p.Addr().Is4In6():
		return fmt.Errorf("prefix %s is IPv4-mapped; write it as IPv4", p)
	case p != p.Masked():
		return fmt.Errorf("prefix %s has host bits set; did you mean %s?", p, p.Masked())
	}
	return nil
}

// to128 returns the form of the table: IPv4 as IPv4-mapped.
func to128(p netip.Prefix) netip.Prefix {
	if !p.Addr().Is4() {
		return p
	}
	return netip.PrefixFrom(netip.AddrFrom16(p.Addr().As16()), mapped4.Bits()+p.Bits())
}

// from128 returns the form that people write.
func from128(p netip.Prefix) netip.Prefix {
	if !p.Addr().Is4In6() || p.Bits() < mapped4.Bits() {
		return p
	}
	return netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-mapped4.Bits())
}
