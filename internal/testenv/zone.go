// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"fmt"
	"math/big"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

// Zone is what a Nameserver says, as data. The zero value knows no name.
type Zone struct {
	// Records are in the form of a zone file (RFC 1035 section 5.1), one each:
	// "www.allowed.example. 60 IN CNAME host.allowed.example.". The owner "*.x." stands
	// for every name below x that has none of its own.
	Records []string
	// Beside are records that an answer for the name holds although they do not belong
	// there, in its answer section, after what does.
	Beside map[string][]string
	// Numbered names nK.ZONE have the K-th address of the prefix, or of both families'.
	Numbered map[string][]netip.Prefix
	// Truncated names are answered over UDP with the TC bit and nothing else.
	Truncated []string
	// Failing names are answered with the code: dns.RcodeServerFailure.
	Failing map[string]int
	// Silent names are not answered.
	Silent []string
}

// numberedTTL is that of Numbered names, in seconds.
const numberedTTL = 60

// maxChain is how far a chain of CNAME records is followed.
const maxChain = 16

// zone is a Zone as it is looked up.
type zone struct {
	Zone
	records map[string][]dns.RR // by canonical owner
	beside  map[string][]dns.RR
}

func parseZone(z Zone) (*zone, error) {
	parsed := &zone{Zone: z, records: map[string][]dns.RR{}, beside: map[string][]dns.RR{}}
	for _, text := range z.Records {
		rr, err := dns.NewRR(text)
		if err != nil {
			return nil, fmt.Errorf("record %q: %w", text, err)
		}
		owner := dns.CanonicalName(rr.Header().Name)
		parsed.records[owner] = append(parsed.records[owner], rr)
	}
	for name, texts := range z.Beside {
		for _, text := range texts {
			rr, err := dns.NewRR(text)
			if err != nil {
				return nil, fmt.Errorf("record %q: %w", text, err)
			}
			parsed.beside[dns.CanonicalName(name)] = append(parsed.beside[dns.CanonicalName(name)], rr)
		}
	}
	return parsed, nil
}

// reply answers as a recursive server would: with the whole chain.
func (z *zone) reply(request *dns.Msg, overTCP bool) *dns.Msg {
	reply := new(dns.Msg)
	reply.SetReply(request)
	reply.RecursionAvailable = true
	size := dns.MinMsgSize
	if opt := request.IsEdns0(); opt != nil {
		size = max(size, int(opt.UDPSize()))
		reply.SetEdns0(1232, false)
	}
	q := request.Question[0]
	name := dns.CanonicalName(q.Name)
	if code, ok := z.Failing[name]; ok {
		reply.Rcode = code
		return reply
	}
	if !overTCP && contains(z.Truncated, name) {
		reply.Truncated = true
		return reply
	}
	var known bool
	reply.Answer, known = z.resolve(q.Name, q.Qtype)
	reply.Answer = append(reply.Answer, z.beside[name]...)
	if !known {
		reply.Rcode = dns.RcodeNameError
	}
	if len(reply.Answer) == 0 {
		soa, err := dns.NewRR(". 60 IN SOA ns.example. root.example. 1 3600 600 86400 60")
		if err != nil {
			panic(fmt.Sprintf("testenv: SOA: %v", err))
		}
		reply.Ns = []dns.RR{soa}
	}
	if !overTCP {
		reply.Truncate(size)
	}
	return reply
}

// resolve returns the records for the question, with the chain before them, and whether the name exists.
func (z *zone) resolve(name string, qtype uint16) (answer []dns.RR, known bool) {
	for range maxChain {
		owned := z.owned(name)
		if owned == nil {
			return answer, false
		}
		next := ""
		for _, rr := range owned {
			switch {
			case rr.Header().Rrtype == qtype:
				answer = append(answer, rr)
			case rr.Header().Rrtype == dns.TypeCNAME:
				answer = append(answer, rr)
				next = rr.(*dns.CNAME).Target
			}
		}
		if next == "" {
			return answer, true
		}
		name = next
	}
	return answer, true
}

// owned returns copies of the records of a name, with the name as their owner, as it was written in the question.
func (z *zone) owned(name string) []dns.RR {
	records := z.records[dns.CanonicalName(name)]
	for below := dns.CanonicalName(name); records == nil && below != "."; {
		_, below, _ = strings.Cut(below, ".")
		if below == "" {
			below = "."
		}
		records = z.records["*."+below]
	}
	if records == nil {
		records = z.numbered(name)
	}
	var copies []dns.RR
	for _, rr := range records {
		rr = dns.Copy(rr)
		rr.Header().Name = name
		copies = append(copies, rr)
	}
	return copies
}

func (z *zone) numbered(name string) []dns.RR {
	first, rest, _ := strings.Cut(dns.CanonicalName(name), ".")
	var n uint32
	if _, err := fmt.Sscanf(first, "n%d", &n); err != nil {
		return nil
	}
	var records []dns.RR
	for _, prefix := range z.Numbered[rest] {
		addr := NumberedAddr(prefix, int(n))
		header := dns.RR_Header{Name: name, Class: dns.ClassINET, Ttl: numberedTTL}
		if addr.Is4() {
			header.Rrtype = dns.TypeA
			records = append(records, &dns.A{Hdr: header, A: addr.AsSlice()})
		} else {
			header.Rrtype = dns.TypeAAAA
			records = append(records, &dns.AAAA{Hdr: header, AAAA: addr.AsSlice()})
		}
	}
	return records
}

// NumberedAddr is the n-th address of the prefix, beginning anew at its end.
func NumberedAddr(prefix netip.Prefix, n int) netip.Addr {
	base := prefix.Masked().Addr()
	size := new(big.Int).Lsh(big.NewInt(1), uint(base.BitLen()-prefix.Bits()))
	sum := new(big.Int).Mod(big.NewInt(int64(n)), size)
	sum.Add(sum, new(big.Int).SetBytes(base.AsSlice()))
	addr, ok := netip.AddrFromSlice(sum.FillBytes(make([]byte, base.BitLen()/8)))
	if !ok {
		panic("testenv: an address of odd length")
	}
	return addr
}

func contains(names []string, name string) bool {
	for _, n := range names {
		if dns.CanonicalName(n) == name {
			return true
		}
	}
	return false
}
