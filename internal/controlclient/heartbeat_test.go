// SPDX-License-Identifier: Apache-2.0

package controlclient

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/internal/state"
)

func TestHeartbeatInterval(t *testing.T) {
	tests := []struct {
		name    string
		welcome *netfencev1.Welcome
		want    time.Duration
	}{
		{"published peer", nil, 30 * time.Second},
		{"not said", &netfencev1.Welcome{}, 30 * time.Second},
		{"asked for", &netfencev1.Welcome{HeartbeatInterval: durationpb.New(7 * time.Second)}, 7 * time.Second},
		{"too often", &netfencev1.Welcome{HeartbeatInterval: durationpb.New(time.Millisecond)}, minHeartbeat},
		{"negative", &netfencev1.Welcome{HeartbeatInterval: durationpb.New(-time.Hour)}, minHeartbeat},
		{"too seldom", &netfencev1.Welcome{HeartbeatInterval: durationpb.New(24 * time.Hour)}, maxHeartbeat},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(h *harness) {
				s, _ := h.accept()
				s.syncAck(tt.welcome)
				synctest.Wait()
				for range 3 {
					start := time.Now()
					if beat := s.recv().GetHeartbeat(); beat == nil || time.Since(start) != tt.want {
						t.Errorf("got %v after %v, want one after %v", beat, time.Since(start), tt.want)
					}
				}
			})
		})
	}
}

func TestHeartbeatCounters(t *testing.T) {
	bubble(t, func(h *harness) {
		s, _ := h.connect()
		h.live("1", "", denylist())
		h.live("2", "", denylist()) // has none yet
		h.live("3", "", denylist())
		wantEqual(t, s.recv().GetHeartbeat(), &netfencev1.Heartbeat{Stats: []*netfencev1.AttachmentStats{
			{Id: "1", PacketsAllowed: 1, PacketsBlocked: 2, DnsQueriesAllowed: 3, DnsQueriesBlocked: 4},
			{Id: "3", PacketsAllowed: 1, PacketsBlocked: 2, DnsQueriesAllowed: 3, DnsQueriesBlocked: 4},
		}})
	}, func(o *Options) {
		o.Counters = func(id string) (Stats, bool) { return Stats{1, 2, 3, 4}, id != "2" }
	})
}

// TestHeartbeatsAreSplit: as many as it takes to stay below 3 MiB each.
func TestHeartbeatsAreSplit(t *testing.T) {
	const n = 2000
	bubble(t, func(h *harness) {
		long := strings.Repeat("x", 4000) // real ids have 36 bytes: this stands for 200,000 attachments
		for i := range n {
			h.create(state.Attachment{ID: fmt.Sprintf("%04d%s", i, long), Policy: denylist()})
		}
		s, _ := h.connect()
		events, seen := 0, 0
		for seen < n {
			event := s.recv()
			if event.GetHeartbeat() == nil {
				continue // Subscribed of those that the SyncRequest had no room for
			}
			if size := proto.Size(event); size > maxEventBytes {
				t.Errorf("heartbeat of %d bytes", size)
			}
			for _, stats := range event.GetHeartbeat().GetStats() {
				if want := fmt.Sprintf("%04d", seen); stats.GetId()[:4] != want {
					t.Fatalf("got %s, want %s", stats.GetId()[:4], want)
				}
				seen++
			}
			events++
		}
		if events != 3 {
			t.Errorf("%d heartbeats", events)
		}
	}, func(o *Options) {
		o.Counters = func(string) (Stats, bool) { return Stats{math.MaxUint64, math.MaxUint64, 0, 0}, true }
	})
}
