// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"
)

// stage is a testenv.TB outside of `go test`: what is put on it is cleared away when the play ends, however it ends.
type stage struct {
	ctx context.Context // done on ^C

	mu       sync.Mutex // guards what follows
	failed   bool
	cleanups []func()
}

func newStage(ctx context.Context) *stage { return &stage{ctx: ctx} }

// play runs the story and clears the stage. It reports whether all went well.
func (s *stage) play(story func(*stage)) bool {
	done := make(chan struct{})
	go func() { // of its own, so that Fatalf can end it
		defer close(done)
		story(s)
	}()
	<-done
	for cleanup := s.last(); cleanup != nil; cleanup = s.last() {
		cleared := make(chan struct{})
		go func() {
			defer close(cleared)
			cleanup()
		}()
		<-cleared
	}
	return !s.fails()
}

func (s *stage) fails() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

// last takes the cleanup that was registered last.
func (s *stage) last() func() {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.cleanups)
	if n == 0 {
		return nil
	}
	cleanup := s.cleanups[n-1]
	s.cleanups = s.cleanups[:n-1]
	return cleanup
}

// goOn ends the play if somebody asked for that.
func (s *stage) goOn() {
	if s.ctx.Err() != nil {
		s.Fatalf("interrupted")
	}
}

// Helper is for stack traces, which there are none of here.
func (s *stage) Helper() {}

// Cleanup has f called at the end, the latest first.
func (s *stage) Cleanup(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cleanups = append(s.cleanups, f)
}

// Errorf makes the play fail and lets it go on.
func (s *stage) Errorf(format string, args ...any) {
	s.mu.Lock()
	s.failed = true
	s.mu.Unlock()
	fmt.Fprintln(os.Stderr, paint(red, "demo: "+fmt.Sprintf(format, args...)))
}

// Fatalf ends the play. It must be called by the play's own goroutine.
func (s *stage) Fatalf(format string, args ...any) {
	// ^C reaches the workloads as well, and their end may be noticed before the signal is.
	select {
	case <-s.ctx.Done():
		s.Errorf("interrupted, cleaning up")
	case <-time.After(100 * time.Millisecond):
		s.Errorf(format, args...)
	}
	runtime.Goexit()
}

// Logf prints a line.
func (s *stage) Logf(format string, args ...any) { fmt.Printf(format+"\n", args...) }

// Skipf fails: a demo that shows nothing is none.
func (s *stage) Skipf(format string, args ...any) { s.Fatalf(format, args...) }

// Context is done on ^C.
func (s *stage) Context() context.Context { return s.ctx }

// TempDir makes a directory that lasts as long as the play.
func (s *stage) TempDir() string {
	dir, err := os.MkdirTemp("", "netfence-demo-")
	if err != nil {
		s.Fatalf("temporary directory: %v", err)
	}
	s.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			s.Errorf("temporary directory: %v", err)
		}
	})
	return dir
}
