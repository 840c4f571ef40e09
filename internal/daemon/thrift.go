// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// Garbage is collected when there is as much of it, in hundredths of what is in use: with
// idle attachments little is made, and to look for it more often costs nothing that
// anybody feels, while under load it would.
const (
	idlePercent = 25
	busyPercent = 100
	idleRate    = 8 << 20 // bytes a second; the watch over ten thousand attachments makes 2 MB
)

const thriftInterval = 5 * time.Second

// thrift keeps the memory that is not in use little while little is done, until ctx ends.
// Who has set GOGC has decided.
func thrift(ctx context.Context) error {
	if os.Getenv("GOGC") != "" {
		<-ctx.Done()
		return nil
	}
	defer debug.SetGCPercent(debug.SetGCPercent(busyPercent))
	tick := time.NewTicker(thriftInterval)
	defer tick.Stop()
	percent, before, since := busyPercent, allocated(), time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now := time.Now()
		made := allocated()
		if next := garbagePercent(made-before, now.Sub(since)); next != percent {
			debug.SetGCPercent(next)
			percent = next
		}
		before, since = made, now
	}
}

// garbagePercent is for so many bytes that were allocated in so much time.
func garbagePercent(bytes uint64, took time.Duration) int {
	if float64(bytes) < idleRate*took.Seconds() {
		return idlePercent
	}
	return busyPercent
}

// allocated is how many bytes were, since the start.
func allocated() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}
