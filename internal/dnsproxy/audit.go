// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"errors"
	"net/netip"

	"github.com/miekg/dns"

	"github.com/netfence/netfence/internal/datapath"
	"github.com/netfence/netfence/policy"
)

// object has a voice speak against the query. It reports whether that is final:
// it is not where the member is in audit.
func (r *ruling) object(o outcome, by int, why string) (final bool) {
	v := &r.voices[by]
	if !v.Names.Audit {
		r.say(o, by, why)
		return true
	}
	if v.against == "" {
		v.against = why
	}
	v.learns = false
	return false
}

// objectAll has all voices speak against it, for what no rule of theirs is the
// reason, up to the first whose word is final.
func (r *ruling) objectAll(o outcome, why string) (final bool) {
	for i := range r.voices {
		if r.object(o, i, why) {
			return true
		}
	}
	return false
}

// inert reports whether nobody filters the answer: all voices are in audit.
func (r *ruling) inert() bool {
	for i := range r.voices {
		if !r.voices[i].Names.Audit {
			return false
		}
	}
	return true
}

// watch answers as if nobody filtered, and has the members in audit note what
// they would have done.
func (s *Server) watch(q *query, chain []datapath.Member, r *ruling, m *dns.Msg, last, wait bool) ([]byte, error) {
	f, err := filter(q, m.Copy(), func(netip.Addr) bool { return true })
	if err != nil {
		r.objectAll(failed, err.Error())
		f = &filtered{}
	}
	r.cloaked(f)
	if err := s.teachAudited(q, r, f, last, wait); err != nil {
		return nil, err
	}
	s.note(q, chain, r, "")
	// The bound is that of answers that are filtered: past it, what was learned ends.
	return q.passOn(m, seconds(s.MaxTTL)), nil
}

// teachAudited has the kernel learn what the members in audit allow, each for
// itself, so that packets are judged as they would be. What goes wrong with it
// changes no answer; an error is datapath.ErrStale, unless this is the last try, or datapath.ErrBusy.
func (s *Server) teachAudited(q *query, r *ruling, f *filtered, last, wait bool) error {
	for i := range r.voices {
		v := &r.voices[i]
		if !v.Names.Audit || !v.learns {
			continue
		}
		addrs := f.addrs
		if len(v.given) > 0 { // which the answer would have been
			addrs = v.given
		}
		var open []netip.Addr
		for _, addr := range addrs {
			if s.passes(v, addr) {
				open = append(open, addr)
			} else if v.against == "" {
				v.against = "would remove " + removed(addr)
			}
		}
		if v.learned = s.lesson(v, open); len(v.learned) == 0 {
			continue
		}
		err := s.Kernel.Learn([]datapath.Lesson{s.lessonOf(q, v, f)}, wait)
		switch {
		case err == nil:
			continue
		case errors.Is(err, datapath.ErrBusy):
			return err
		case !errors.Is(err, datapath.ErrStale):
			v.learned, v.against = nil, s.notLearned(q, r, err)+colon(err.Error())
		case last:
			v.learned, v.against = nil, keptChanging
		default:
			return err
		}
	}
	return nil
}

// cloaked reports an alias that a deny rule names, where the question itself
// was allowed only for want of a rule. A rule for the question says more than
// one for where its owner has it hosted.
func (r *ruling) cloaked(f *filtered) (final bool) {
	for i := range r.voices {
		v := &r.voices[i]
		if v.ruled || v.against != "" {
			continue
		}
		for _, name := range f.aliases {
			if d := v.Names.Decide(name); d.Action != policy.Allow && r.object(refused, i, v.reasonAgainst(name, d)+", of which it is an alias") {
				return true
			}
		}
	}
	return false
}
