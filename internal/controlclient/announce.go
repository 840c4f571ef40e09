// SPDX-License-Identifier: Apache-2.0

package controlclient

import (
	"context"

	"google.golang.org/protobuf/proto"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/internal/state"
)

// announce has the announcer tell of id.
func (s *session) announce(id string) {
	s.mu.Lock()
	s.due[id] = struct{}{}
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// announcer tells what came and what went. It keeps no queue of messages: ids only, and what is said
// of them is read from the store when it is sent.
func (s *session) announcer(ctx context.Context) {
	synced := s.synced
	for {
		// Taken before the store is read: a change in between shows in the channel.
		changed := s.c.opts.Store.Changed()
		if !s.tellCome(s.takeDue()) || !s.tellGone() {
			return
		}
		select {
		case <-s.wake:
		case <-changed:
		case <-synced:
			synced = nil
			overflow := s.overflow
			s.overflow = nil
			if !s.tellCome(overflow) {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

func (s *session) takeDue() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := make([]string, 0, len(s.due))
	for id := range s.due {
		ids = append(ids, id)
	}
	clear(s.due)
	return ids
}

// tellCome sends Subscribed for ids, with what is in force where the attachment is not new. False means that the stream
// is over.
func (s *session) tellCome(ids []string) bool {
	synced := false
	select {
	case <-s.synced:
		synced = true
	default:
	}
	for _, id := range ids {
		a, _, err := s.c.opts.Store.Get(id)
		if err != nil || a.OwnPolicy || a.Removing != state.ReasonNone {
			// It is none of the peer's business, or went away meanwhile, and tellGone has it.
			continue
		}
		if !a.Pending && !synced {
			// Only then it is known whether the peer reads what is in force.
			s.overflow = append(s.overflow, id)
			continue
		}
		record := s.c.subscribed(a)
		if !a.Pending && s.welcome != nil {
			_, record.Applied = s.c.observed(a)
		}
		if size := proto.Size(record); size > maxEventBytes {
			s.c.log.Error("attachment cannot be announced: too large", "attachment", id, "bytes", size, "max", maxEventBytes)
			continue
		}
		if s.send(&netfencev1.DaemonEvent{Event: &netfencev1.DaemonEvent_Subscribed{Subscribed: record}}) != nil {
			return false
		}
	}
	return true
}

// tellGone sends Unsubscribed for what the store has seen go, and lets it forget. One that is lost with
// the stream is made good by the next SyncRequest, which leaves the attachment out.
func (s *session) tellGone() bool {
	for _, gone := range s.c.opts.Store.Gone() {
		if s.unsubscribed(gone.ID, reason(gone.Reason), gone.Text) != nil {
			return false
		}
		s.c.opts.Store.Forget(gone.ID)
		s.c.settle(gone.ID, outcome{err: state.ErrNotFound})
	}
	return true
}

func (s *session) unsubscribed(id string, reason netfencev1.UnsubscribeReason, text string) error {
	return s.send(&netfencev1.DaemonEvent{Event: &netfencev1.DaemonEvent_Unsubscribed{Unsubscribed: &netfencev1.Unsubscribed{
		Id: id, Reason: reason, Error: clip(text),
	}}})
}

func reason(r state.Reason) netfencev1.UnsubscribeReason {
	switch r {
	case state.ReasonRemoved:
		return netfencev1.UnsubscribeReason_UNSUBSCRIBE_REASON_REMOVED
	case state.ReasonDetached:
		return netfencev1.UnsubscribeReason_UNSUBSCRIBE_REASON_DETACHED
	default:
		return netfencev1.UnsubscribeReason_UNSUBSCRIBE_REASON_ERROR
	}
}
