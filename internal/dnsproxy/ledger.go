// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/netfence/netfence/internal/events"
)

// incidentEvery is how often one kind of incident of an attachment is told.
const incidentEvery = time.Minute

// ledger holds what is counted for attachments.
type ledger struct{ accounts sync.Map } // id → *account

type account struct {
	allowed, blocked atomic.Uint64

	mu   sync.Mutex
	told map[string]time.Time // by kind of incident
}

func (l *ledger) of(id string) *account {
	if a, ok := l.accounts.Load(id); ok {
		return a.(*account)
	}
	a, _ := l.accounts.LoadOrStore(id, new(account))
	return a.(*account)
}

func (l *ledger) counts(id string) (allowed, blocked uint64) {
	a, ok := l.accounts.Load(id)
	if !ok {
		return 0, 0
	}
	return a.(*account).allowed.Load(), a.(*account).blocked.Load()
}

func (l *ledger) forget(id string) { l.accounts.Delete(id) }

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
func (s *Server) incident(id, kind, message string) {
	now := time.Now()
	if s.ledger.of(id).mayTell(kind, now) {
		s.Events(events.Event{Time: now, Attachment: id, Incident: &events.Incident{Kind: kind, Message: message}})
	}
}

// overLimit accounts for a query or a connection that is not served.
func (s *Server) overLimit(from Peer) {
	chain := s.Kernel.Chain(from.Index)
	if len(chain) == 0 {
		return
	}
	s.ledger.of(chain[0].ID).blocked.Add(1)
	s.incident(chain[0].ID, "queries_limit", "more DNS queries or connections at once than the limit: some are dropped")
}
