// SPDX-License-Identifier: Apache-2.0

package controlclient

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
)

func TestQueryDNS(t *testing.T) {
	bubble(t, func(h *harness) {
		var asked *netfencev1.DnsQueryRequest
		h.query = func(_ context.Context, r *netfencev1.DnsQueryRequest) (*netfencev1.DnsQueryResponse, error) {
			asked = r
			return &netfencev1.DnsQueryResponse{
				Allow: true, AddToFilter: true, Ips: []string{"192.0.2.1", "2001:db8::1", "::ffff:192.0.2.2"}, TtlSeconds: 90,
			}, nil
		}
		h.connect()
		synctest.Wait()
		got, err := h.client.QueryDNS(h.t.Context(), "1", "PyPI.org.", "AAAA")
		if err != nil {
			t.Fatal(err)
		}
		want := DNSAnswer{Allow: true, Learn: true, TTL: 90 * time.Second, Addrs: []netip.Addr{
			netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("192.0.2.2"),
		}}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, want %+v", got, want)
		}
		wantEqual(t, asked, &netfencev1.DnsQueryRequest{Id: "1", Domain: "PyPI.org.", QueryType: "AAAA"})
	})
}

func TestDNSAnswer(t *testing.T) {
	newer := &netfencev1.DnsQueryResponse{Allow: true}
	newer.ProtoReflect().SetUnknown([]byte{0xf8, 0x7f, 1})
	for _, tt := range []struct {
		name   string
		answer *netfencev1.DnsQueryResponse
		want   DNSAnswer
		err    string // contained; empty: none
	}{
		{"nothing said is a refusal", &netfencev1.DnsQueryResponse{}, DNSAnswer{}, ""},
		{
			"a refusal teaches nothing",
			&netfencev1.DnsQueryResponse{AddToFilter: true, Ips: []string{"192.0.2.1"}, TtlSeconds: 1}, DNSAnswer{}, "",
		},
		{"upstream's addresses", &netfencev1.DnsQueryResponse{Allow: true}, DNSAnswer{Allow: true}, ""},
		{"longest life", &netfencev1.DnsQueryResponse{Allow: true, TtlSeconds: 1<<31 - 1}, DNSAnswer{Allow: true, TTL: (1<<31 - 1) * time.Second}, ""},
		{"no address", &netfencev1.DnsQueryResponse{Allow: true, Ips: []string{"192.0.2.1", "pypi.org"}}, DNSAnswer{}, `ips[1]: "pypi.org" is not an address`},
		{"a prefix", &netfencev1.DnsQueryResponse{Allow: true, Ips: []string{"10.0.0.0/8"}}, DNSAnswer{}, "ips[0]"},
		{"a zone", &netfencev1.DnsQueryResponse{Allow: true, Ips: []string{"fe80::1%eth0"}}, DNSAnswer{}, "ips[0]"},
		{"an empty address", &netfencev1.DnsQueryResponse{Allow: true, Ips: []string{""}}, DNSAnswer{}, "ips[0]"},
		{
			"too many", &netfencev1.DnsQueryResponse{Allow: true, Ips: strings.Split(strings.Repeat("192.0.2.1 ", 256)+"192.0.2.1", " ")},
			DNSAnswer{}, "ips: 257 addresses, at most 256",
		},
		{"too long", &netfencev1.DnsQueryResponse{Allow: true, TtlSeconds: 1 << 31}, DNSAnswer{}, "ttl_seconds: 2147483648"},
		{"unknown fields", newer, DNSAnswer{}, "fields that this version does not know"},
	} {
		got, err := dnsAnswer(tt.answer)
		if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: got %+v, %v", tt.name, got, err)
		}
	}
}

func TestQueryDNSWithoutAnswer(t *testing.T) {
	bubble(t, func(h *harness) {
		h.connect()
		synctest.Wait()
		_, err := h.client.QueryDNS(h.t.Context(), "1", "pypi.org.", "A")
		if status.Code(err) != codes.Unimplemented {
			t.Errorf("a peer without QueryDns: %v", err)
		}

		h.query = func(ctx context.Context, _ *netfencev1.DnsQueryRequest) (*netfencev1.DnsQueryResponse, error) {
			<-ctx.Done() // hangs
			return nil, ctx.Err()
		}
		ctx, cancel := context.WithTimeout(h.t.Context(), 2*time.Second)
		defer cancel()
		start := time.Now()
		_, err = h.client.QueryDNS(ctx, "1", "pypi.org.", "A")
		if status.Code(err) != codes.DeadlineExceeded || time.Since(start) != 2*time.Second {
			t.Errorf("a peer that hangs: %v after %v", err, time.Since(start))
		}
	})
}

// Without a stream that the peer has answered on nobody is asked, and nobody waits.
func TestQueryDNSWhileDisconnected(t *testing.T) {
	asks := func(h *harness) {
		h.t.Helper()
		start := time.Now()
		_, err := h.client.QueryDNS(h.t.Context(), "1", "pypi.org.", "A")
		var unavailable *UnavailableError
		if !errors.As(err, &unavailable) || time.Since(start) != 0 {
			h.t.Errorf("got %v after %v", err, time.Since(start))
		}
	}
	bubble(t, func(h *harness) {
		h.query = func(context.Context, *netfencev1.DnsQueryRequest) (*netfencev1.DnsQueryResponse, error) {
			return nil, fmt.Errorf("asked")
		}
		asks(h)
		s, _ := h.accept()
		asks(h)
		s.syncAck(nil)
		synctest.Wait()
		if _, err := h.client.QueryDNS(h.t.Context(), "1", "pypi.org.", "A"); err == nil || !strings.Contains(err.Error(), "asked") {
			t.Errorf("connected: %v", err)
		}
		s.end <- errors.New("over")
		synctest.Wait()
		asks(h)
	})
}

// A query that is under way when the stream ends is not left hanging.
func TestQueryDNSEndsWithStream(t *testing.T) {
	bubble(t, func(h *harness) {
		h.query = func(ctx context.Context, _ *netfencev1.DnsQueryRequest) (*netfencev1.DnsQueryResponse, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		s, _ := h.connect()
		synctest.Wait()
		done := make(chan error, 1)
		go func() {
			_, err := h.client.QueryDNS(context.Background(), "1", "pypi.org.", "A")
			done <- err
		}()
		blocked(t, done)
		s.end <- errors.New("over")
		if err := <-done; err == nil {
			t.Error("answered")
		}
	})
}
