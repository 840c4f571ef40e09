// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"github.com/miekg/dns"
)

// headersIPv4 are an IPv4 header's bytes and UDP's.
const headersIPv4 = 20 + 8

// fit has an answer cut that is larger than a packet of the device that it leaves by: lost there, the client would not
// know to ask over TCP, whose segments both ends have agreed on. Over IPv6 each fits (RFC 8200 section 5), and what
// DNS without EDNS may send is sent.
func (j *job) fit(reply []byte) []byte {
	if j.stream || len(reply) <= dns.MinMsgSize || !j.from.Client.Addr().Is4() {
		return reply
	}
	mtu, err := j.s.Kernel.MTU(j.from.Index)
	if err != nil || mtu == 0 || len(reply) <= mtu-headersIPv4 { // a device that cannot be asked is gone
		return reply
	}
	m := new(dns.Msg)
	if m.Unpack(reply) != nil {
		return nil // it is our own
	}
	if opt := m.IsEdns0(); opt != nil { // rather no words than no records
		opt.Option = nil
	}
	m.Truncate(max(mtu-headersIPv4, dns.MinMsgSize))
	if cut, err := m.Pack(); err == nil {
		return cut
	}
	return nil
}
