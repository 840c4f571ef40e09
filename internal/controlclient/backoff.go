// SPDX-License-Identifier: Apache-2.0

package controlclient

import (
	"math/rand/v2"
	"time"
)

// Backoff bounds the wait between two dials. It doubles from Min to Max, and half of it is random:
// daemons that lost the same control plane at the same instant do not come back at the same instant.
type Backoff struct {
	Min, Max time.Duration
}

// wait is the time before dial number failures+1, after so many failures in a row.
func (b Backoff) wait(failures int) time.Duration {
	d := b.Min
	for range failures - 1 {
		if d >= b.Max/2 {
			d = b.Max
			break
		}
		d *= 2
	}
	return between(d/2, d)
}

// between is a random duration within [low, high].
func between(low, high time.Duration) time.Duration {
	if high <= low {
		return low
	}
	return low + rand.N(high-low+1)
}
