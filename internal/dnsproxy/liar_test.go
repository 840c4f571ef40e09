// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// raw is an upstream over UDP that answers each query with datagrams of any kind.
func raw(t *testing.T, answer func(q *dns.Msg) [][]byte) *resolver {
	t.Helper()
	pc, l := samePort(t)
	l.Close()
	var running sync.WaitGroup
	running.Go(func() {
		buf := make([]byte, dns.MaxMsgSize)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			q := new(dns.Msg)
			if err := q.Unpack(buf[:n]); err != nil {
				t.Error(err)
				return
			}
			for _, b := range answer(q) {
				if _, err := pc.WriteTo(b, from); err != nil && !errors.Is(err, net.ErrClosed) {
					t.Error(err)
				}
			}
		}
	})
	t.Cleanup(func() { pc.Close(); running.Wait() })
	return &resolver{addr: netip.MustParseAddrPort(pc.LocalAddr().String())}
}

// changed is the good answer, changed.
func changed(t *testing.T, q *dns.Msg, change func(m *dns.Msg)) []byte {
	m := records(t, "$ 60 IN A 192.0.2.66")(q, "udp")
	change(m)
	return packed(t, m)
}

func good(t *testing.T, q *dns.Msg) []byte {
	return packed(t, records(t, "$ 60 IN A 192.0.2.1")(q, "udp"))
}

func flip(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'a' <= c|0x20 && c|0x20 <= 'z' {
			b[i] ^= 0x20
			break
		}
	}
	return string(b)
}

// closesTCP truncates over UDP and closes each connection.
func closesTCP(t *testing.T) *resolver {
	pc, l := samePort(t)
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			// Read what was sent, for otherwise the close would be a reset.
			_, _ = readMessage(c, time.Second, dns.MaxMsgSize)
			c.Close()
		}
	})
	running.Go(func() {
		buf := make([]byte, dns.MaxMsgSize)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			q := new(dns.Msg)
			if err := q.Unpack(buf[:n]); err != nil {
				t.Error(err)
				return
			}
			if _, err := pc.WriteTo(changed(t, q, func(m *dns.Msg) { m.Truncated = true }), from); err != nil {
				t.Error(err)
			}
		}
	})
	t.Cleanup(func() { pc.Close(); l.Close(); running.Wait() })
	return &resolver{addr: netip.MustParseAddrPort(pc.LocalAddr().String())}
}
