// SPDX-License-Identifier: Apache-2.0

package controlclient

import (
	"context"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
)

// What a Welcome may ask for. Within these a heartbeat costs little, and a dead peer is noticed.
const (
	minHeartbeat = time.Second
	maxHeartbeat = 10 * time.Minute
)

// statsField is Heartbeat.stats (wire.md, "Daemon → control plane").
const statsField = 1

// heartbeats sends the counters of every attachment at the peer's interval.
func (s *session) heartbeats(ctx context.Context) {
	ticker := time.NewTicker(s.c.opts.Heartbeat)
	defer ticker.Stop()
	synced := s.synced
	for {
		select {
		case <-synced:
			synced = nil
			if asked := s.welcome.GetHeartbeatInterval(); asked != nil {
				ticker.Reset(min(max(asked.AsDuration(), minHeartbeat), maxHeartbeat))
			}
		case <-ticker.C:
			for beat := range s.c.beats {
				if s.send(&netfencev1.DaemonEvent{Event: &netfencev1.DaemonEvent_Heartbeat{Heartbeat: beat}}) != nil {
					return
				}
			}
		case <-ctx.Done():
			return
		}
	}
}

// beats yields the counters in as many heartbeats as the size of an event asks for; at least one,
// which then says no more than that the daemon lives.
func (c *Client) beats(yield func(*netfencev1.Heartbeat) bool) {
	beat, size := new(netfencev1.Heartbeat), eventOverhead
	if c.opts.Counters != nil {
		for _, a := range c.opts.Store.List() {
			if a.OwnPolicy {
				continue
			}
			counters, ok := c.opts.Counters(a.ID)
			if !ok {
				continue
			}
			stats := &netfencev1.AttachmentStats{
				Id:                a.ID,
				PacketsAllowed:    counters.PacketsAllowed,
				PacketsBlocked:    counters.PacketsBlocked,
				DnsQueriesAllowed: counters.DNSQueriesAllowed,
				DnsQueriesBlocked: counters.DNSQueriesBlocked,
			}
			grows := protowire.SizeTag(statsField) + protowire.SizeBytes(proto.Size(stats))
			if size+grows > maxEventBytes {
				if !yield(beat) {
					return
				}
				beat, size = new(netfencev1.Heartbeat), eventOverhead
			}
			size += grows
			beat.Stats = append(beat.Stats, stats)
		}
	}
	yield(beat)
}
