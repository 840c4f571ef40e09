// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// BenchmarkServe is queries through the server to an upstream on loopback and
// back, 32 at a time, nothing cached. The kernel is not part of it. The
// upstream shares the machine: "direct" is what it and the client take alone.
func BenchmarkServe(b *testing.B) {
	up := resolve(b, records(b, "$ 60 IN A 192.0.2.1"))
	w := serve(b, Options{TryTimeout: 2 * time.Second, Timeout: 10 * time.Second}, []*resolver{up}, allowlist("*.example"))
	for name, addr := range map[string]string{"direct": up.addr.String(), "netfence": w.addr} {
		b.Run(name, func(b *testing.B) {
			var n atomic.Uint64
			b.SetParallelism(16)
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				c := dns.Conn{Conn: dial(b, "udp", addr)}
				for pb.Next() {
					q := questionFor(fmt.Sprintf("n%d.example", n.Add(1)), dns.TypeA)
					if err := c.WriteMsg(q); err != nil {
						b.Error(err)
						return
					}
					if m, err := c.ReadMsg(); err != nil || m.Id != q.Id || len(m.Answer) != 1 {
						b.Errorf("%v, %v", m, err)
						return
					}
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "q/s")
		})
	}
}
