// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// echo is an upstream that takes next to no time: it answers every query with one
// address, without reading it.
func echo(b *testing.B) *resolver {
	b.Helper()
	pc, l := samePort(b)
	l.Close()
	var running sync.WaitGroup
	running.Go(func() {
		c := pc.(*net.UDPConn)
		buf := make([]byte, 512)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			at := headerBytes
			for buf[at] != 0 {
				at += 1 + int(buf[at])
			}
			n = min(n, at+5) // the OPT record goes
			buf[2], buf[3], buf[7], buf[11] = 0x81, 0x80, 1, 0
			out := append(buf[:n], 0xc0, headerBytes, 0, 1, 0, 1, 0, 0, 1, 44, 0, 4, 192, 0, 2, 1)
			if _, err := c.WriteToUDPAddrPort(out, from); err != nil {
				return
			}
		}
	})
	b.Cleanup(func() { pc.Close(); running.Wait() })
	return &resolver{addr: netip.MustParseAddrPort(pc.LocalAddr().String())}
}

// flood asks b.N queries at addr, 32 at a time, of names that are all different
// or all the same.
func flood(b *testing.B, addr string, same bool) {
	b.Helper()
	var n atomic.Uint64
	b.SetParallelism(16)
	b.ReportAllocs()
	before := processorTime(b)
	b.RunParallel(func(pb *testing.PB) {
		c := dial(b, "udp", addr)
		if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
			b.Error(err)
			return
		}
		query := packed(b, questionFor("n0000000000.example", dns.TypeA))
		in := make([]byte, 512)
		for pb.Next() {
			i := n.Add(1)
			binary.BigEndian.PutUint16(query, uint16(i))
			if !same {
				copy(query[headerBytes+2:], fmt.Sprintf("%010d", i))
			}
			if _, err := c.Write(query); err != nil {
				b.Error(err)
				return
			}
			if size, err := c.Read(in); err != nil || size < headerBytes || in[0] != query[0] || in[1] != query[1] || in[3]&0xf != 0 || in[7] != 1 {
				b.Errorf("%x, %v", in[:size], err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "q/s")
	b.ReportMetric(float64(processorTime(b)-before)/float64(b.N)/1e3, "cpu-µs/op")
}

// processorTime is what this process has taken: less of a matter of luck than the
// clock's where others work beside it.
func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkUncached is queries through the server to an upstream on loopback and
// back, nothing kept. The kernel is not part of it. The upstream and the clients
// share the machine: "direct" is what they take alone.
func BenchmarkUncached(b *testing.B) {
	up := echo(b)
	w := serve(b, Options{TryTimeout: 2 * time.Second, Timeout: 10 * time.Second}, []*resolver{up}, allowlist("*.example"))
	b.Run("direct", func(b *testing.B) { flood(b, up.addr.String(), false) })
	b.Run("netfence", func(b *testing.B) { flood(b, w.addr, false) })
}

// BenchmarkCached is the same where one answer is kept for all.
func BenchmarkCached(b *testing.B) {
	up := echo(b)
	w := serve(b, Options{CacheBytes: 1 << 20, TryTimeout: 2 * time.Second, Timeout: 10 * time.Second}, []*resolver{up}, allowlist("*.example"))
	b.Run("direct", func(b *testing.B) { flood(b, up.addr.String(), true) })
	b.Run("netfence", func(b *testing.B) { flood(b, w.addr, true) })
}
