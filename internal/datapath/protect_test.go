// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/testenv"
)

// TestShut holds what the filter of a listener takes; with interfaces it is in daemon.TestWorkloadsDoNotReachTheMetrics.
func TestShut(t *testing.T) {
	listen := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error { return Shut(c) }}
	l, err := listen.Listen(context.Background(), "tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := netip.MustParseAddrPort(l.Addr().String()).Port()
	option := func(level, name int, value string) func(fd int) error {
		return func(fd int) error { return unix.SetsockoptString(fd, level, name, value) }
	}
	for _, tt := range []struct {
		name, to string
		set      func(fd int) error
		connects bool
	}{
		{"IPv4", "127.0.0.1", nil, true},
		{"IPv6", "::1", nil, true},
		{"IPv4 with an option", "127.0.0.1", option(unix.IPPROTO_IP, unix.IP_OPTIONS, "\x01\x01\x01\x00"), false},
		{"IPv6 with hop-by-hop options", "::1", option(unix.IPPROTO_IPV6, unix.IPV6_HOPOPTS, "\x00\x00\x01\x04\x00\x00\x00\x00"), false},
		{"IPv6 with destination options", "::1", option(unix.IPPROTO_IPV6, unix.IPV6_DSTOPTS, "\x00\x00\x01\x04\x00\x00\x00\x00"), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			patience := testenv.Patience
			if !tt.connects {
				patience = 300 * time.Millisecond
			}
			dialer := net.Dialer{Timeout: patience, Control: func(_, _ string, c syscall.RawConn) error {
				if tt.set == nil {
					return nil
				}
				var err error
				control := c.Control(func(fd uintptr) { err = tt.set(int(fd)) })
				return errors.Join(control, err)
			}}
			c, err := dialer.Dial("tcp", netip.AddrPortFrom(netip.MustParseAddr(tt.to), port).String())
			if err == nil {
				c.Close()
			}
			if (err == nil) != tt.connects || err != nil && !os.IsTimeout(err) {
				t.Errorf("connect: %v", err)
			}
		})
	}
}
