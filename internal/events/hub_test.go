// SPDX-License-Identifier: Apache-2.0

package events

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func flow(id string, length int) Event {
	return Event{Attachment: id, Flow: &DeniedFlow{Length: length}}
}

func decision(id string) Event {
	return Event{Attachment: id, Decision: &DNSDecision{Name: "example.com"}}
}

func next(t *testing.T, s *Subscription) ([]Event, uint64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	batch, lost, err := s.Next(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return batch, lost
}

func TestEventsReachWhoeverAskedForThem(t *testing.T) {
	h := NewHub(0)
	h.Publish(flow("a", 1)) // nobody listens yet
	all, one := h.Subscribe(), h.Subscribe("b", "c")
	defer all.Close()
	defer one.Close()
	h.Publish(flow("a", 2))
	h.Publish(flow("b", 3))
	h.Publish(Event{Attachment: "a", Lost: 5})

	got, lost := next(t, all)
	if len(got) != 2 || got[0].Flow.Length != 2 || got[1].Flow.Length != 3 || lost != 5 {
		t.Errorf("all: %+v, lost %d", got, lost)
	}
	got, lost = next(t, one)
	if len(got) != 1 || got[0].Attachment != "b" || lost != 0 {
		t.Errorf("one: %+v, lost %d", got, lost)
	}
}

func TestSlowSubscriberLosesAndIsTold(t *testing.T) {
	h := NewHub(0)
	slow, quick := h.Subscribe(), h.Subscribe()
	defer slow.Close()
	defer quick.Close()
	seen := 0
	for i := range queueLength + 7 {
		h.Publish(flow("a", i))
		got, lost := next(t, quick)
		if seen += len(got); lost != 0 {
			t.Fatalf("the quick one lost %d", lost)
		}
	}
	if seen != queueLength+7 {
		t.Errorf("the quick one saw %d", seen)
	}
	got, lost := next(t, slow)
	if len(got) != queueLength || lost != 7 || got[queueLength-1].Flow.Length != queueLength-1 {
		t.Errorf("the slow one got %d and lost %d, want the first %d and 7", len(got), lost, queueLength)
	}
	h.Publish(flow("a", 1))
	if got, lost := next(t, slow); len(got) != 1 || lost != 0 {
		t.Errorf("after that it got %d and lost %d, want 1 and 0", len(got), lost)
	}
}

func TestLostAloneIsNews(t *testing.T) {
	h := NewHub(0)
	s := h.Subscribe()
	defer s.Close()
	h.Publish(Event{Attachment: "a", Lost: 3})
	if got, lost := next(t, s); len(got) != 0 || lost != 3 {
		t.Errorf("got %+v, lost %d", got, lost)
	}
}

func TestNextEnds(t *testing.T) {
	for name, end := range map[string]func(*Hub, *Subscription, context.CancelFunc) error{
		"subscription": func(_ *Hub, s *Subscription, _ context.CancelFunc) error { s.Close(); return ErrClosed },
		"hub":          func(h *Hub, _ *Subscription, _ context.CancelFunc) error { h.Close(); return ErrClosed },
		"context":      func(_ *Hub, _ *Subscription, stop context.CancelFunc) error { stop(); return context.Canceled },
	} {
		t.Run(name, func(t *testing.T) {
			h := NewHub(0)
			s := h.Subscribe()
			defer s.Close()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			ended := make(chan error)
			go func() {
				_, _, err := s.Next(ctx)
				ended <- err
			}()
			want := end(h, s, cancel)
			if err := <-ended; !errors.Is(err, want) {
				t.Errorf("Next: %v, want %v", err, want)
			}
		})
	}
}

func TestClosedHubHandsOutWhatWaits(t *testing.T) {
	h := NewHub(0)
	s := h.Subscribe()
	defer s.Close()
	h.Publish(flow("a", 1))
	h.Close()
	h.Publish(flow("a", 2))
	if got, _ := next(t, s); len(got) != 1 {
		t.Errorf("got %+v, want the one before Close", got)
	}
	if _, _, err := s.Next(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("then %v", err)
	}
	late := h.Subscribe()
	defer late.Close()
	if _, _, err := late.Next(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("a late subscription: %v", err)
	}
}

func TestDecisionsAreLimitedByAttachment(t *testing.T) {
	now := time.Unix(1000, 0)
	h := NewHub(10)
	h.now = func() time.Time { return now }
	s := h.Subscribe()
	defer s.Close()
	flood := func(id string, n int) (int, uint64) {
		for range n {
			h.Publish(decision(id))
		}
		got, lost := next(t, s)
		return len(got), lost
	}
	if got, lost := flood("a", 25); got != 10 || lost != 15 {
		t.Errorf("a: %d and %d lost, want 10 and 15", got, lost)
	}
	if got, lost := flood("b", 3); got != 3 || lost != 0 {
		t.Errorf("b pays for a: %d and %d lost", got, lost)
	}
	h.Publish(Event{Attachment: "a", Incident: &Incident{Kind: "names_limit"}})
	h.Publish(Event{Attachment: "a", Lost: 2})
	if got, lost := next(t, s); len(got) != 1 || lost != 2 {
		t.Errorf("an incident and two lost ones: %+v, %d", got, lost)
	}
	if c := h.Counts(); c != (Counts{Decisions: 13, Incidents: 1, Lost: 17}) {
		t.Errorf("counts: %+v", c)
	}
	now = now.Add(500 * time.Millisecond)
	if got, lost := flood("a", 25); got != 5 || lost != 20 {
		t.Errorf("half a second later: %d and %d lost, want 5 and 20", got, lost)
	}
	h.Publish(flow("a", 1))
	if got, lost := next(t, s); len(got) != 1 || lost != 0 {
		t.Errorf("a dropped packet was limited as a decision")
	}
}

func TestBucketsOfQuietAttachmentsGo(t *testing.T) {
	now := time.Unix(1000, 0)
	l := limiter{rate: 10}
	for i := range 1000 {
		if !l.allow(fmt.Sprint(i), now) {
			t.Fatal("a first decision was refused")
		}
	}
	now = now.Add(time.Second)
	l.allow("0", now)
	if len(l.buckets) != 1 {
		t.Errorf("%d buckets, want that of the one that still asks", len(l.buckets))
	}
}

func TestPublishersAndReadersAtOnce(t *testing.T) {
	h := NewHub(0)
	const publishers, each = 4, 2000
	var readers, writers sync.WaitGroup
	for range 3 {
		s := h.Subscribe()
		readers.Go(func() {
			defer s.Close()
			total := uint64(0)
			for {
				got, lost, err := s.Next(t.Context())
				total += uint64(len(got)) + lost
				if err != nil {
					break
				}
			}
			if total != publishers*each {
				t.Errorf("saw or lost %d, want %d", total, publishers*each)
			}
		})
	}
	for range publishers {
		writers.Go(func() {
			for i := range each {
				h.Publish(flow("a", i))
			}
		})
	}
	writers.Wait()
	h.Close()
	readers.Wait()
}

func TestWhoWantsFlowsIsNotWokenByOthers(t *testing.T) {
	h := NewHub(0)
	s := h.SubscribeFlows()
	defer s.Close()
	h.Publish(decision("a"))
	h.Publish(Event{Attachment: "a", Lost: 5})
	h.Publish(Event{Attachment: "a", Incident: &Incident{Kind: "k"}})
	select {
	case <-s.wake:
		t.Error("woken")
	default:
	}
	h.Publish(flow("a", 1))
	if got, lost := next(t, s); len(got) != 1 || got[0].Flow.Length != 1 || lost != 0 {
		t.Errorf("%+v, lost %d", got, lost)
	}
}
