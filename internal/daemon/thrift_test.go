// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"runtime/debug"
	"testing"
	"testing/synctest"
	"time"
)

// TestThrift holds that garbage is looked for more often while little is made, and as ever
// under load and when the daemon is gone.
func TestThrift(t *testing.T) {
	t.Setenv("GOGC", "")
	percent := func() int {
		now := debug.SetGCPercent(100)
		debug.SetGCPercent(now)
		return now
	}
	before := percent()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- thrift(ctx) }()
		synctest.Wait()
		if now := percent(); now != busyPercent {
			t.Errorf("%d%% at the start", now)
		}
		made := make([][]byte, 0, 3)
		for _, step := range []struct{ size, want int }{
			{1, idlePercent},
			{int(2 * idleRate * thriftInterval / time.Second), busyPercent},
			{1, idlePercent},
		} {
			made = append(made, make([]byte, step.size))
			<-time.After(thriftInterval)
			synctest.Wait()
			if now := percent(); now != step.want {
				t.Errorf("%d%% after %d bytes, want %d%%", now, step.size, step.want)
			}
		}
		if len(made[1]) < idleRate {
			t.Error("nothing was allocated")
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	if now := percent(); now != before {
		t.Errorf("%d%% afterwards, was %d%%", now, before)
	}
}
