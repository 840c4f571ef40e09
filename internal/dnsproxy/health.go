// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"time"
)

const (
	// unhealthy is how long a server that failed is asked last.
	unhealthy = 10 * time.Second
	// plainFor is how long a server that refused EDNS is asked without.
	plainFor = 15 * time.Minute
	// leastPatience is how long even the fastest server is waited for: it may have
	// to ask others. See upstream.least.
	leastPatience = 250 * time.Millisecond
)

// rank is greater for servers that are asked later.
func (s *server) rank(now time.Time) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.failed.IsZero() && now.Sub(s.failed) < unhealthy {
		return 1
	}
	return 0
}

// idle reports whether nothing would be lost if the server were forgotten.
func (s *server) idle() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.flight == 0 && len(s.open) == 0 && len(s.streams) == 0
}

// good takes note of an answer after so long. One that was asked for without
// EDNS, because with it there was none, tells how to ask for a while.
func (s *server) good(now time.Time, after time.Duration, edns bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failed, s.missed = time.Time{}, 0
	if s.rtt == 0 {
		s.rtt = after
	}
	s.rtt += (after - s.rtt) / 8
	if !edns && now.After(s.plain) {
		s.plain = now.Add(plainFor)
	}
}

func (s *server) bad(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failed = now
}

// slow takes note of an answer that did not come while others would have. One
// datagram may be lost, and one name be slow; when it was waited for in full, or
// for the third time in a row, the server is not well.
func (s *server) slow(now time.Time, full bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.missed++; full || s.missed > 2 {
		s.failed = now
	}
}

// patience is how long the server is waited for before another is asked.
func (s *server) patience() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rtt == 0 {
		return s.u.try
	}
	return min(s.u.try, s.u.least+4*s.rtt)
}

func (s *server) speaksEDNS(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !now.Before(s.plain)
}
