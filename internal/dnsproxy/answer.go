// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/miekg/dns"

	"github.com/netfence/netfence/internal/datapath"
	"github.com/netfence/netfence/internal/events"
)

// maxStale is how often a query is decided anew because the policy changed
// meanwhile. A policy that changes faster than that has no answer.
const maxStale = 4

const keptChanging = "the policy kept changing"

// settleInterval is how soon a query that waits finds that its attachment is known.
const settleInterval = 20 * time.Millisecond

// settle returns when it is known whose the index is, or that it is nobody's.
func (s *Server) settle(ctx context.Context, q *query, index uint32) {
	for len(s.Kernel.Chain(index)) == 0 && time.Now().Before(q.deadline) {
		select {
		case <-s.Settled:
			return
		case <-ctx.Done():
			return
		case <-time.After(settleInterval):
		}
	}
}

// answer acts on a ruling, with what was found if it asks for something. An error is datapath.ErrStale,
// or, unless it may wait, datapath.ErrBusy: then it is to be called again.
func (s *Server) answer(q *query, chain []datapath.Member, r *ruling, known *asked, failed *failure, last, wait bool) ([]byte, error) {
	switch {
	case r.outcome == refused:
		s.record(q, r, r.why)
		return s.refuse(q, r.code, r.why), nil
	case r.outcome != allowed:
		s.record(q, r, r.why+colon(r.detail))
		return q.fail(extra{dns.ExtendedErrorCodeOther, r.why}), nil
	case q.Qtype == dns.TypeANY:
		s.note(q, chain, r, "answered as RFC 8482 has it")
		return q.minimalAny(), nil
	case r.local:
		s.note(q, chain, r, discovery+" is answered here")
		return q.negative(dns.RcodeSuccess), nil
	}
	var m *dns.Msg
	if r.given {
		m = r.givenAnswer(q)
	} else if failed == nil {
		if s.isPlain(q, r, known) {
			return s.answerPlain(q, chain, r, known, last, wait)
		}
		m, failed = known.message()
	}
	if failed != nil {
		s.note(q, chain, r, failed.text+colon(failed.detail))
		return q.fail(append(failed.upstream, extra{failed.code, failed.text})...), nil
	}
	if len(r.voices) == 0 {
		s.note(q, chain, r, "")
		return q.passOn(m, maxTTL), nil
	}
	if r.inert() {
		return s.watch(q, chain, r, m, last, wait)
	}
	f, err := filter(q, m, func(addr netip.Addr) bool { return s.permits(r, addr) })
	if err != nil {
		s.note(q, chain, r, err.Error())
		return q.fail(extra{dns.ExtendedErrorCodeInvalidData, err.Error()}), nil
	}
	if r.cloaked(f) {
		s.record(q, r, r.why)
		return s.refuse(q, r.code, r.why), nil
	}
	return s.teach(q, chain, r, m, f, last, wait)
}

// isPlain reports whether nobody has anything to change in the answer that was found.
func (s *Server) isPlain(q *query, r *ruling, known *asked) bool {
	p := known.answer.plain
	if p == nil || !p.answers(q) || known.stale || len(r.voices) == 0 || len(p.msg)+len(appendOPT(nil, false)) > q.maxSize {
		return false
	}
	for i := range r.voices {
		if r.voices[i].Names.Audit {
			return false
		}
	}
	return s.AllowPrivateAnswers || !p.surprises && !slices.ContainsFunc(p.addrs, s.host.has)
}

// answerPlain is what the rest of answer does, for such an answer.
func (s *Server) answerPlain(q *query, chain []datapath.Member, r *ruling, known *asked, last, wait bool) ([]byte, error) {
	p := known.answer.plain
	f := &filtered{addrs: p.addrs, aliases: p.aliases, ttl: known.left(p.ttl)}
	if r.cloaked(f) {
		s.record(q, r, r.why)
		return s.refuse(q, r.code, r.why), nil
	}
	if reply, held, err := s.learn(q, r, f, last, wait); !held {
		return reply, err
	}
	s.note(q, chain, r, "")
	return p.answer(q, &known.found, seconds(s.life(f))), nil
}

// learn has the kernel learn the addresses of an answer. held: it has; otherwise
// reply is what the client is told instead.
func (s *Server) learn(q *query, r *ruling, f *filtered, last, wait bool) (reply []byte, held bool, err error) {
	var lessons []datapath.Lesson
	for i := range r.voices {
		v := &r.voices[i]
		if v.Names.Audit {
			continue
		}
		if v.learned = s.lesson(v, f.addrs); len(v.learned) > 0 {
			lessons = append(lessons, s.lessonOf(q, v, f))
		}
	}
	if len(lessons) > 0 {
		if err := s.Kernel.Learn(lessons, wait); again(err) {
			return nil, false, err
		} else if err != nil {
			return s.unlearned(q, r, err), false, nil
		}
	}
	if err := s.teachAudited(q, r, f, last, wait); err != nil {
		return nil, false, err
	}
	return nil, true, nil
}

// again is true of an error that says nothing but that what it is of is to be done again.
func again(err error) bool {
	return errors.Is(err, datapath.ErrStale) || errors.Is(err, datapath.ErrBusy)
}

// teach has the kernel learn the addresses of an answer, and only then makes
// the message that holds them.
func (s *Server) teach(q *query, chain []datapath.Member, r *ruling, m *dns.Msg, f *filtered, last, wait bool) ([]byte, error) {
	if reply, held, err := s.learn(q, r, f, last, wait); !held {
		return reply, err
	}
	reply := q.reply(m.Rcode)
	reply.AuthenticatedData = m.AuthenticatedData && !f.altered && !r.given && (q.ad || q.do)
	reply.Answer, reply.Ns = f.answer, f.authority
	// A client may hold an address for as long as the kernel does and no longer:
	// past MaxTTL it would connect to what is closed. The kernel's grace covers
	// what passes between the answer's way and the client's clock.
	q.adopt(reply, seconds(s.life(f)))

	extras := explanations(m)
	what := ""
	if len(f.removed) > 0 {
		what = "removed " + removed(f.removed[0])
		extras = slices.Insert(extras, 0, extra{dns.ExtendedErrorCodeBlocked, "netfence " + what})
		if len(f.addrs) == 0 && len(reply.Ns) == 0 {
			reply.Ns = []dns.RR{q.soa()} // so that it is not asked again at once
		}
	}
	s.note(q, chain, r, what)
	return q.pack(reply, extras...), nil
}

// life is how long the addresses of an answer are learned for.
func (s *Server) life(f *filtered) time.Duration {
	return min(max(time.Duration(f.ttl)*time.Second, s.MinTTL), s.MaxTTL)
}

func (s *Server) lessonOf(q *query, v *voice, f *filtered) datapath.Lesson {
	return datapath.Lesson{Member: v.Member, Name: q.name, Grant: v.grant, Addrs: v.learned, TTL: s.life(f)}
}

func removed(addr netip.Addr) string {
	return fmt.Sprintf("%s from the answer: private, reserved or the host's own (a rule that allows the address, or private: true on the name's, lets it through)", addr)
}

// unlearned fails a query whose addresses the kernel did not take.
func (s *Server) unlearned(q *query, r *ruling, err error) []byte {
	text := s.notLearned(q, r, err)
	s.tell(q, r.voices[0].Member, blocked, text+colon(err.Error()), nil)
	return q.fail(extra{dns.ExtendedErrorCodeOther, text})
}

// notLearned makes an incident of it and says what is wrong.
func (s *Server) notLearned(q *query, r *ruling, err error) string {
	whose := r.voices[0].Member
	kind, text := "learn_failed", "the addresses could not be learned"
	var limit *datapath.LimitError
	switch {
	case errors.As(err, &limit):
		kind, text = limit.Limit+"_limit", fmt.Sprintf("limits.%s is reached", limit.Limit)
		for _, v := range r.voices {
			if v.ID == limit.Attachment {
				whose = v.Member
			}
		}
	case errors.Is(err, datapath.ErrFull):
		kind, text = "learned_full", "no room is left for learned addresses"
	}
	s.incident(whose, kind, fmt.Sprintf("%s: %v", q.name, err))
	return text
}

// passOn answers with what an upstream said, as it said it, to a client whose
// queries nobody filters, for ttl at most.
func (q *query) passOn(m *dns.Msg, ttl uint32) []byte {
	reply := q.reply(m.Rcode)
	reply.AuthenticatedData = m.AuthenticatedData && (q.ad || q.do)
	reply.Answer, reply.Ns = m.Answer, m.Ns
	for _, rr := range m.Extra {
		switch rr.Header().Rrtype {
		case dns.TypeOPT, dns.TypeTSIG, dns.TypeSIG: // are between the upstream and us
		default:
			reply.Extra = append(reply.Extra, rr)
		}
	}
	q.adopt(reply, ttl)
	return q.pack(reply, explanations(m)...)
}

// adopt gives the records of an answer the client's spelling of its question,
// which upstream was asked in another, and bounds how long they hold.
func (q *query) adopt(m *dns.Msg, ttl uint32) {
	for _, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			h := rr.Header()
			if canonical(h.Name) == q.name {
				h.Name = q.Name
			}
			h.Ttl = min(validTTL(h.Ttl), ttl)
		}
	}
}

// explanations are what an upstream had to say about its answer.
func explanations(m *dns.Msg) []extra {
	var all []extra
	if opt := m.IsEdns0(); opt != nil {
		for _, o := range opt.Option {
			if e, ok := o.(*dns.EDNS0_EDE); ok && len(all) < 3 {
				all = append(all, extra{e.InfoCode, "upstream: " + strings.Map(printable, strings.ToValidUTF8(e.ExtraText, "?"))})
			}
		}
	}
	return all
}

// printable keeps what somebody else wrote from moving the cursor of whoever reads it.
func printable(r rune) rune {
	if unicode.IsPrint(r) {
		return r
	}
	return '?'
}

// note records a query that was answered for everyone who was asked, or for the
// innermost member where nobody filters.
func (s *Server) note(q *query, chain []datapath.Member, r *ruling, what string) {
	if len(r.voices) == 0 {
		s.tell(q, chain[0], passed, "dns mode disabled"+colon(what), nil)
		return
	}
	for i := range r.voices {
		v := &r.voices[i]
		if v.against != "" {
			s.tell(q, v.Member, wouldDeny, v.against+colon(what), v.learned)
		} else {
			s.tell(q, v.Member, passed, v.reason+colon(what), v.learned)
		}
	}
}

// record records a query that was not allowed: for the member whose word it
// is, and for the innermost, whose client it was.
func (s *Server) record(q *query, r *ruling, why string) {
	if len(r.voices) == 0 {
		return // nobody's
	}
	s.tell(q, r.voices[r.by].Member, blocked, why, nil)
	if r.by > 0 {
		s.tell(q, r.voices[0].Member, blocked, "an enclosing attachment: "+why, nil)
	}
}

// verdict is how a query is counted and told of.
type verdict uint8

const (
	blocked verdict = iota
	passed
	wouldDeny // passed, for the policy is in audit
)

func (s *Server) tell(q *query, m datapath.Member, how verdict, reason string, learned []netip.Addr) {
	a := s.account(m)
	switch how {
	case blocked:
		a.blocked.Add(1)
	case wouldDeny:
		a.wouldDeny.Add(1)
		a.allowed.Add(1)
	case passed:
		a.allowed.Add(1)
	}
	s.Events(events.Event{Time: time.Now(), Attachment: m.ID, Decision: &events.DNSDecision{
		Name: q.name, Type: q.typeName(), Allowed: how == passed, WouldDeny: how == wouldDeny, Reason: reason, Learned: learned,
	}})
}

func colon(s string) string {
	if s == "" {
		return ""
	}
	return ": " + s
}

// seconds is a duration as a TTL.
func seconds(d time.Duration) uint32 {
	return uint32(min(max(d/time.Second, 0), maxTTL))
}
