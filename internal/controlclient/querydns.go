// SPDX-License-Identifier: Apache-2.0

package controlclient

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"time"

	"google.golang.org/grpc"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
)

// What an answer to QueryDns may hold. No resolver gives a workload more addresses of one name, and
// RFC 2181 section 8 ends a TTL at 31 bits.
const (
	maxAnswerAddrs = 256
	maxAnswerTTL   = math.MaxInt32 // seconds
	maxAnswerBytes = 64 << 10
)

// DNSAnswer is what the control plane decided about one query. The zero value is a refusal.
type DNSAnswer struct {
	Allow bool
	Learn bool          // add_to_filter: the addresses of the answer are learned
	Addrs []netip.Addr  // the answer; none: upstream's
	TTL   time.Duration // of Addrs
}

// QueryDNS asks the control plane about a query of attachment id in proxy mode: name with its final dot,
// as it was asked, and the mnemonic of the record type. It goes over the connection of the open stream,
// ends with ctx, and is never tried again. An error, which an answer that cannot be taken whole is too,
// means that nobody decided.
func (c *Client) QueryDNS(ctx context.Context, id, name, qtype string) (DNSAnswer, error) {
	conn, err := c.connected()
	if err != nil {
		return DNSAnswer{}, err
	}
	request := &netfencev1.DnsQueryRequest{Id: id, Domain: name, QueryType: qtype}
	response, err := netfencev1.NewControlPlaneClient(conn).QueryDns(ctx, request, grpc.MaxCallRecvMsgSize(maxAnswerBytes))
	if err != nil {
		return DNSAnswer{}, fmt.Errorf("control plane %s: query %s %s: %w", c.Status().Address, name, qtype, err)
	}
	answer, err := dnsAnswer(response)
	if err != nil {
		return DNSAnswer{}, fmt.Errorf("control plane %s: answer for %s %s: %w", c.Status().Address, name, qtype, err)
	}
	return answer, nil
}

// connected is the connection whose stream the control plane has answered on.
func (c *Client) connected() (grpc.ClientConnInterface, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.session == nil || c.link.state != Connected {
		return nil, &UnavailableError{Address: c.link.address, Cause: c.link.err}
	}
	return c.session.conn, nil
}

func dnsAnswer(m *netfencev1.DnsQueryResponse) (DNSAnswer, error) {
	if len(m.ProtoReflect().GetUnknown()) > 0 {
		return DNSAnswer{}, errors.New("has fields that this version does not know, which may narrow it (upgrade the daemon)")
	}
	if !m.GetAllow() {
		return DNSAnswer{}, nil
	}
	if n := len(m.GetIps()); n > maxAnswerAddrs {
		return DNSAnswer{}, fmt.Errorf("ips: %d addresses, at most %d", n, maxAnswerAddrs)
	}
	if ttl := m.GetTtlSeconds(); ttl > maxAnswerTTL {
		return DNSAnswer{}, fmt.Errorf("ttl_seconds: %d, at most %d", ttl, maxAnswerTTL)
	}
	answer := DNSAnswer{
		Allow: true,
		Learn: m.GetAddToFilter(),
		TTL:   time.Duration(m.GetTtlSeconds()) * time.Second,
	}
	for i, text := range m.GetIps() {
		addr, err := netip.ParseAddr(text)
		if err != nil || addr.Zone() != "" {
			return DNSAnswer{}, fmt.Errorf("ips[%d]: %q is not an address", i, clip(text))
		}
		answer.Addrs = append(answer.Addrs, addr.Unmap())
	}
	return answer, nil
}
