// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"fmt"
)

// stage is a part of the daemon that runs until it is stopped. Stages are started in the order in which they need each
// other and stopped the other way round, so that a call still under way finds all below it working.
type stage struct {
	name string
	run  func(context.Context) error
}

// runStages runs them until ctx is done or one of them ends by itself, and returns what went wrong with any of them.
// started is called when all have been started.
func runStages(ctx context.Context, stages []stage, started func()) (err error) {
	running, end := context.WithCancel(ctx)
	defer end()
	for _, s := range stages {
		stop := s.start(ctx, end)
		defer func() { err = errors.Join(err, stop()) }()
	}
	started()
	<-running.Done()
	return nil
}

// start runs the stage; ended is called when it ends. What is returned stops the stage, waits and tells how it went.
func (s stage) start(ctx context.Context, ended func()) (stop func() error) {
	// Cancellation of its own: the stages must not all stop at once.
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	outcome := make(chan error, 1)
	go func() {
		defer ended()
		err := s.run(ctx)
		if err == nil && ctx.Err() == nil {
			err = errors.New("ended unasked")
		}
		outcome <- err
	}()
	return func() error {
		cancel()
		if err := <-outcome; err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		return nil
	}
}
