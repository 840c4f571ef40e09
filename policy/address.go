// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"net"
	"net/netip"
)

// ParseSource reads a CIDR, an address or a MAC address.
func ParseSource(s string) (Source, error) {
	if mac, err := net.ParseMAC(s); err == nil && len(mac) == len(Source{}.MAC) {
		source := Source{MAC: [6]byte(mac)}
		return source, source.check()
	}
	prefix, _, err := ParsePrefix(s, RefuseHostBits)
	if err != nil {
		return Source{}, fmt.Errorf("source: %v", err)
	}
	return Source{Prefix: prefix}, nil
}

// String returns the form that ParseSource reads.
func (s Source) String() string {
	if s.Prefix.IsValid() {
		return s.Prefix.String()
	}
	return net.HardwareAddr(s.MAC[:]).String()
}

// MarshalText returns the form that ParseSource reads.
func (s Source) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads what ParseSource reads.
func (s *Source) UnmarshalText(b []byte) (err error) {
	*s, err = ParseSource(string(b))
	return err
}

// ParseServer reads the address of a DNS server; the port is 53 unless given.
func ParseServer(s string) (netip.AddrPort, error) {
	server, err := netip.ParseAddrPort(s)
	if err != nil {
		addr, addrErr := netip.ParseAddr(s)
		if addrErr != nil {
			return netip.AddrPort{}, fmt.Errorf("server %s is not an address (write 192.0.2.53, 192.0.2.53:5353 or [2001:db8::53]:5353)", quote(s))
		}
		server = netip.AddrPortFrom(addr, 53)
	}
	server = netip.AddrPortFrom(server.Addr().Unmap(), server.Port())
	if err := checkServer(server); err != nil {
		return netip.AddrPort{}, err
	}
	return server, nil
}

func checkServer(s netip.AddrPort) error {
	if !s.IsValid() || s.Port() == 0 || s.Addr().IsUnspecified() || s.Addr().IsMulticast() {
		return fmt.Errorf("server %s: not the address and port of one server", s)
	}
	return nil
}

func (s Source) check() error {
	if s.Prefix.IsValid() {
		if s.MAC != [6]byte{} {
			return fmt.Errorf("source %s: a prefix or a MAC address, not both", s.Prefix)
		}
		return checkPrefix(s.Prefix)
	}
	if s.MAC == [6]byte{} || s.MAC[0]&1 != 0 {
		return fmt.Errorf("source %s: not the MAC address of one device", s)
	}
	return nil
}
