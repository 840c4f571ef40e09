// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/netfence/netfence/internal/datapath"
	"github.com/netfence/netfence/internal/events"
)

// incidentEvery is how often one kind of incident of an attachment is told.
const incidentEvery = time.Minute

// Counts are queries. WouldDeny are among the allowed: rules refuse them, and
// were in audit.
type Counts struct{ Allowed, Blocked, WouldDeny uint64 }

// Add adds those of another attachment.
func (c *Counts) Add(other Counts) {
	c.Allowed += other.Allowed
	c.Blocked += other.Blocked
	c.WouldDeny += other.WouldDeny
}

// ledger holds what is counted for attachments.
type ledger struct {
	accounts sync.Map // id → *account

	// mu has an account end and its counts be added to ended in one step.
	mu    sync.Mutex
	ended Counts
}

type account struct {
	allowed, blocked, wouldDeny atomic.Uint64

	mu   sync.Mutex
	told map[string]time.Time // by kind of incident
}

// account is where m is counted. A new one is kept only while m is attached:
// Forget follows the detaching, and comes no second time for what a query in
// flight would leave behind.
func (s *Server) account(m datapath.Member) *account {
	if a, ok := s.ledger.accounts.Load(m.ID); ok {
		return a.(*account)
	}
	a, _ := s.ledger.accounts.LoadOrStore(m.ID, new(account))
	if s.owner(m.Index) != m.ID {
		s.ledger.forget(m.ID)
	}
	return a.(*account)
}

func (a *account) counts() Counts {
	return Counts{Allowed: a.allowed.Load(), Blocked: a.blocked.Load(), WouldDeny: a.wouldDeny.Load()}
}

func (l *ledger) counts(id string) Counts {
	a, ok := l.accounts.Load(id)
	if !ok {
		return Counts{}
	}
	return a.(*account).counts()
}

func (l *ledger) all() (counts map[string]Counts, ended Counts) {
	l.mu.Lock()
	defer l.mu.Unlock()
	counts = make(map[string]Counts)
	l.accounts.Range(func(id, a any) bool {
		counts[id.(string)] = a.(*account).counts()
		return true
	})
	return counts, l.ended
}

func (l *ledger) forget(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if a, ok := l.accounts.LoadAndDelete(id); ok {
		l.ended.Add(a.(*account).counts())
	}
}

func (a *account) mayTell(kind string, now time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if last, ok := a.told[kind]; ok && now.Sub(last) < incidentEvery {
		return false
	}
	if a.told == nil {
		a.told = make(map[string]time.Time)
	}
	a.told[kind] = now
	return true
}

// incident tells of something that happened to an attachment, unless it has
// been told just now.
func (s *Server) incident(m datapath.Member, kind, message string) {
	now := time.Now()
	if s.account(m).mayTell(kind, now) {
		s.Events(events.Event{Time: now, Attachment: m.ID, Incident: &events.Incident{Kind: kind, Message: message}})
	}
}

// overLimit accounts for a query or a connection that is not served.
func (s *Server) overLimit(from Peer) {
	chain := s.Kernel.Chain(from.Index)
	if len(chain) == 0 {
		return
	}
	s.account(chain[0]).blocked.Add(1)
	s.incident(chain[0], "queries_limit", "more DNS queries or connections at once than the limit: some are dropped")
}
