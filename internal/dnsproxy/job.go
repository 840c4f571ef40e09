// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/miekg/dns"

	"github.com/netfence/netfence/internal/datapath"
	"github.com/netfence/netfence/policy"
)

// job is one query on its way to its answer. It is in the line while there is
// something to be done for it, and elsewhere while it waits: at most one of both
// has it.
type job struct {
	s      *Server
	ctx    context.Context // of who serves: when it ends nobody waits for the answer
	place  uint32          // in the line
	in     []byte
	from   Peer
	stream bool
	next   func(*job, *hand) bool // see step
	done   func([]byte, *hand)    // is called once; nil: there is no answer

	q       *query
	owner   string
	tries   int
	chain   []datapath.Member
	ruling  *ruling
	servers []netip.AddrPort
	known   asked
	failed  *failure
	looked  time.Time // at the host's addresses
	room    [96]byte  // for most queries
}

// step does what there is to be done. False: it is to be called again by a hand that may wait.
func (j *job) step(h *hand) bool {
	if j.ctx.Err() != nil {
		j.done(nil, h)
		return true
	}
	return j.next(j, h)
}

// handle answers one message; nil: not at all. It does not wait for more than ctx: when nothing is done for the message
// any more, over is called.
func (s *Server) handle(ctx context.Context, b []byte, from Peer, stream bool, over func()) []byte {
	answered := make(chan []byte, 1)
	j := &job{s: s, ctx: ctx, place: s.placeOf(from.Index), in: b, from: from, stream: stream, next: (*job).begin}
	j.done = func(reply []byte, _ *hand) {
		over()
		answered <- reply
	}
	s.line.add(j)
	select {
	case reply := <-answered:
		return reply
	case <-ctx.Done():
		return nil
	}
}

func (j *job) begin(h *hand) bool {
	q, reply := parse(j.in, j.from, j.stream)
	if q == nil {
		j.done(reply, h)
		return true
	}
	j.q = q
	q.deadline = time.Now().Add(j.s.Timeout)
	if !j.s.settled() && len(j.s.Kernel.Chain(j.from.Index)) == 0 {
		j.aside(func() { j.s.settle(j.ctx, q, j.from.Index) }, (*job).judge)
		return true
	}
	return j.judge(h)
}

// aside waits for something outside of the line, and then goes on in it.
func (j *job) aside(wait func(), next func(*job, *hand) bool) {
	j.next = next
	j.s.aside.Go(func() {
		wait()
		j.s.line.add(j)
	})
}

// judge has the chain decide, again where it has changed meanwhile.
func (j *job) judge(h *hand) bool {
	s, q := j.s, j.q
	j.chain = s.Kernel.Chain(j.from.Index)
	if j.tries == 0 && len(j.chain) > 0 {
		j.owner = j.chain[0].ID
	}
	if len(j.chain) > 0 && j.chain[0].ID != j.owner {
		j.done(nil, h) // whose query it was is detached, and somebody else has its index
		return true
	}
	if slices.ContainsFunc(j.chain, func(m datapath.Member) bool { return m.Names.Mode == policy.DNSProxy }) {
		j.aside(func() { j.ruling = s.decide(j.ctx, q, j.chain) }, (*job).find)
		return true
	}
	j.ruling = s.decide(j.ctx, q, j.chain)
	return j.find(h)
}

// find has the answer of the cache or of an upstream, where one is needed.
func (j *job) find(h *hand) bool {
	if j.looks((*job).find) {
		return true
	}
	s, q := j.s, j.q
	j.failed = nil
	j.next = (*job).answer
	if !j.ruling.asks(q) {
		return j.answer(h)
	}
	servers, err := s.servers(q, j.ruling, j.chain)
	if err != nil {
		j.failed = &failure{code: dns.ExtendedErrorCodeOther, text: err.Error()}
		return j.answer(h)
	}
	if j.known.answer != nil && slices.Equal(j.known.servers, servers) {
		return j.answer(h)
	}
	j.servers = servers
	f, ok := s.lookup(servers, q.request(j.ruling), q.deadline, j.landed)
	if !ok { // the job may be done by now
		h.asked++
		return true
	}
	j.take(f)
	return j.answer(h)
}

// looks has the job go on with next when it is known anew which addresses are the host's, if they are asked for.
func (j *job) looks(next func(*job, *hand) bool) bool {
	compares := j.ruling.outcome == allowed && (!j.s.AllowPrivateAnswers || j.from.Origin == Cgroup)
	if !compares || time.Since(j.looked) <= hostsFor || !j.s.host.due() {
		return false
	}
	j.aside(func() {
		j.s.host.look()
		j.looked = time.Now()
	}, next)
	return true
}

// landed takes what was found while nobody worked on the job.
func (j *job) landed(f found) {
	j.take(f)
	j.s.line.add(j)
}

func (j *job) take(f found) {
	if j.failed = f.failed; f.failed == nil {
		j.known = asked{j.servers, f}
	}
}

// answer does what was ruled with what was found.
func (j *job) answer(h *hand) bool {
	if j.looks((*job).answer) {
		return true
	}
	last := j.tries == maxStale-1
	reply, err := j.s.answer(j.q, j.chain, j.ruling, &j.known, j.failed, last, h.waits)
	switch {
	case errors.Is(err, datapath.ErrBusy):
		return false
	case !errors.Is(err, datapath.ErrStale):
		j.done(j.fit(reply), h)
		return true
	case !last:
		j.tries++
		return j.judge(h)
	}
	if chain := j.s.Kernel.Chain(j.from.Index); len(chain) > 0 {
		j.s.tell(j.q, chain[0], blocked, keptChanging, nil)
	}
	j.done(j.q.fail(extra{dns.ExtendedErrorCodeOther, keptChanging}), h)
	return true
}

// asks reports whether the answer is somebody else's.
func (r *ruling) asks(q *query) bool {
	return r.outcome == allowed && q.Qtype != dns.TypeANY && !r.local && !r.given
}
