// SPDX-License-Identifier: Apache-2.0

package localapi

import (
	"context"
	"sync"
)

// flights are the attaches under way, by attachment id. Whoever finds an attachment that is still in flight waits:
// until its Attach has answered, it may yet be rolled back.
type flights struct {
	mu     sync.Mutex
	landed map[string]chan struct{} // closed when the attach is over
}

// begin announces an attach before its attachment exists; the returned function ends it.
func (f *flights) begin(id string) (end func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.landed == nil {
		f.landed = make(map[string]chan struct{})
	}
	done := make(chan struct{})
	f.landed[id] = done
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.landed, id)
		close(done)
	}
}

// wait returns when no attach of id is under way.
func (f *flights) wait(ctx context.Context, id string) error {
	f.mu.Lock()
	done := f.landed[id]
	f.mu.Unlock()
	if done == nil {
		return nil
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (f *flights) underWay(id string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.landed[id] != nil
}
