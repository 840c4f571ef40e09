// SPDX-License-Identifier: Apache-2.0

package controlclient

import (
	"context"
	"hash/maphash"

	"google.golang.org/protobuf/proto"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
)

const (
	// shardCount attachments' commands are applied at a time, shardDepth wait before each. Applying is
	// work of the processor's (decode, settle, compile); the kernel is waited for elsewhere.
	shardCount = 4
	shardDepth = 16
	// maxWaits numbered commands may be applied and not yet in force.
	maxWaits = 1024
	// minCommandCost is what the smallest command counts against the budget.
	minCommandCost = 4 << 10
)

// received is a command and what it took of the budget.
type received struct {
	cmd  *netfencev1.ControlCommand
	cost int64
}

var shardSeed = maphash.MakeSeed()

// startShards makes the queues: commands for one attachment go through one of them, in stream order.
func (s *session) startShards(ctx context.Context) {
	s.shards = make([]chan received, shardCount)
	for i := range s.shards {
		shard := make(chan received, shardDepth)
		s.shards[i] = shard
		s.work.Go(func() {
			for r := range shard {
				s.handle(ctx, r.cmd)
				s.budget.Release(r.cost)
				s.handling.Done()
			}
		})
	}
}

// stopShards lets the shards finish what they hold. Only the receiver calls it: nothing is dispatched after.
func (s *session) stopShards() {
	for _, shard := range s.shards {
		close(shard)
	}
	s.shards = nil
}

// dispatch blocks while the commands before it take up the budget or the shard: the stream's flow
// control then holds the control plane back. An error means that the stream is over.
func (s *session) dispatch(ctx context.Context, cmd *netfencev1.ControlCommand) error {
	// The budget is twice the largest command, so that the largest is never held back for ever.
	cost := int64(min(max(proto.Size(cmd), minCommandCost), s.c.opts.MaxCommandBytes))
	if err := s.budget.Acquire(ctx, cost); err != nil {
		return err
	}
	shard := s.shards[maphash.String(shardSeed, cmd.GetId())%uint64(len(s.shards))]
	s.handling.Add(1)
	select {
	case shard <- received{cmd, cost}:
		return nil
	case <-ctx.Done():
		s.handling.Done()
		return ctx.Err()
	}
}
