// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"math"
	"net/netip"
	"slices"
	"time"
)

// Settle turns lifetimes into deadlines: the earlier of boot+TTL and
// ExpiresAt, seen from the boot and wall clocks now. A rule that stands
// unchanged in prev (same list, prefix, ports, TTL and ExpiresAt) keeps the
// deadline that it has there, passed or not: sending a rule again never renews
// it. prev may be nil.
func (p *Policy) Settle(prev *Policy, boot time.Duration, wall time.Time) *Policy {
	if prev == nil {
		prev = &Policy{}
	}
	allow, allowChanged := settle(p.Allow, prev.Allow, boot, wall)
	deny, denyChanged := settle(p.Deny, prev.Deny, boot, wall)
	if !allowChanged && !denyChanged {
		return p
	}
	settled := *p
	settled.Allow, settled.Deny = allow, deny
	return &settled
}

// settle returns rules themselves when every deadline is right already.
func settle(rules, prev []Rule, boot time.Duration, wall time.Time) ([]Rule, bool) {
	var before map[lifetime]time.Duration // made when the first rule asks
	changed := false
	for i := range rules {
		r := &rules[i]
		deadline := time.Duration(0)
		if r.timed() {
			if before == nil {
				before = deadlines(prev)
			}
			var stands bool
			if deadline, stands = before[r.lifetime()]; !stands {
				deadline = r.deadline(boot, wall)
			}
		}
		if deadline == r.Deadline {
			continue
		}
		if !changed {
			rules, changed = slices.Clone(rules), true
		}
		rules[i].Deadline = deadline
	}
	return rules, changed
}

// deadline is never 0, which would mean never: what ends before the boot, or
// has ended, ends at its first nanosecond.
func (r *Rule) deadline(boot time.Duration, wall time.Time) time.Duration {
	end := time.Duration(math.MaxInt64)
	if r.TTL != 0 {
		end = saturating(boot, r.TTL)
	}
	if !r.ExpiresAt.IsZero() {
		end = min(end, saturating(boot, r.ExpiresAt.Sub(wall)))
	}
	return max(end, 1)
}

// lifetime is what makes a rule with a deadline the same rule as before.
type lifetime struct {
	prefix    netip.Prefix
	ports     string
	ttl       time.Duration
	expiresAt time.Time
}

func (r *Rule) lifetime() lifetime {
	ports := slices.SortedFunc(slices.Values(r.Ports), Ports.compare)
	return lifetime{r.Prefix, joinPorts(ports), r.TTL, r.ExpiresAt.Round(0).UTC()}
}

func (r *Rule) timed() bool { return r.TTL != 0 || !r.ExpiresAt.IsZero() }

// deadlines collects what Settle set before. Of two rules that say the same the
// earlier deadline stays.
func deadlines(rules []Rule) map[lifetime]time.Duration {
	m := map[lifetime]time.Duration{}
	for i := range rules {
		r := &rules[i]
		if !r.timed() || r.Deadline == 0 {
			continue
		}
		key := r.lifetime()
		if d, ok := m[key]; !ok || r.Deadline < d {
			m[key] = r.Deadline
		}
	}
	return m
}

// saturating adds two durations of which the second may be huge.
func saturating(a, b time.Duration) time.Duration {
	if sum := a + b; (sum < a) == (b < 0) {
		return sum
	}
	if b < 0 {
		return math.MinInt64
	}
	return math.MaxInt64
}
