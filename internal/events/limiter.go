// SPDX-License-Identifier: Apache-2.0

package events

import "time"

// limiter is a token bucket for each attachment: a second's worth at once, and
// rate a second after that. A bucket that is full says no more than none, so
// those of attachments that are quiet, or gone, are dropped.
type limiter struct {
	rate    float64 // tokens a second, and in a full bucket
	buckets map[string]bucket
	swept   time.Time
}

type bucket struct {
	tokens float64
	filled time.Time
}

func (l *limiter) allow(id string, now time.Time) bool {
	if l.buckets == nil {
		l.buckets = make(map[string]bucket)
	}
	if now.Sub(l.swept) >= time.Second {
		l.swept = now
		for other, b := range l.buckets {
			if l.fill(b, now).tokens >= l.rate {
				delete(l.buckets, other)
			}
		}
	}
	b, known := l.buckets[id]
	if !known {
		b = bucket{tokens: l.rate, filled: now}
	}
	b = l.fill(b, now)
	allowed := b.tokens >= 1
	if allowed {
		b.tokens--
	}
	l.buckets[id] = b
	return allowed
}

func (l *limiter) fill(b bucket, now time.Time) bucket {
	b.tokens = min(l.rate, b.tokens+now.Sub(b.filled).Seconds()*l.rate)
	b.filled = now
	return b
}
