// SPDX-License-Identifier: Apache-2.0

package controlclient

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
)

// FuzzDNSAnswer takes whatever decodes. What is refused decides nothing, and what is taken can be put into an answer.
func FuzzDNSAnswer(f *testing.F) {
	for _, m := range []*netfencev1.DnsQueryResponse{
		{},
		{Allow: true, AddToFilter: true, Ips: []string{"192.0.2.1", "::ffff:192.0.2.1", "2001:db8::1"}, TtlSeconds: 1<<31 - 1},
		{Allow: true, Ips: []string{"fe80::1%0", ""}},
	} {
		data, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m := new(netfencev1.DnsQueryResponse)
		if proto.Unmarshal(data, m) != nil {
			return // gRPC's error
		}
		answer, err := dnsAnswer(m)
		if (err != nil || !m.GetAllow()) && (answer.Allow || answer.Learn || answer.Addrs != nil || answer.TTL != 0) {
			t.Fatalf("%v, %v: %+v", m, err, answer)
		}
		if err == nil && (answer.Allow != m.GetAllow() || answer.Allow && len(answer.Addrs) != len(m.GetIps())) {
			t.Fatalf("%v: %+v", m, answer)
		}
		if len(answer.Addrs) > maxAnswerAddrs || answer.TTL < 0 || answer.TTL > maxAnswerTTL*time.Second {
			t.Fatalf("out of bounds: %d addresses for %v", len(answer.Addrs), answer.TTL)
		}
		for _, addr := range answer.Addrs {
			if !addr.IsValid() || addr.Zone() != "" || addr.Is4In6() {
				t.Fatalf("address %v", addr)
			}
		}
	})
}
