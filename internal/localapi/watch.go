// SPDX-License-Identifier: Apache-2.0

package localapi

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/internal/events"
)

// maxBatch keeps a message far below what a stock client takes, 4 MiB.
const maxBatch = 256

// Watch streams events until the caller, or the daemon, ends it. A caller that reads too slowly loses events and is
// told how many.
func (s *Server) Watch(r *netfencev1.WatchRequest, stream grpc.ServerStreamingServer[netfencev1.EventBatch]) error {
	if err := checkUnknown(r); err != nil {
		return fmt.Errorf("watch: %w", err)
	}
	if s.opts.Events == nil {
		return fmt.Errorf("watch: %w", callErrorf(codes.Unimplemented, "this daemon has no events"))
	}
	for _, id := range r.GetIds() {
		if _, _, err := s.find(id, ""); err != nil {
			return fmt.Errorf("watch: %w", err)
		}
	}
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	defer context.AfterFunc(s.stopping, cancel)()
	subscription := s.opts.Events.Subscribe(r.GetIds()...)
	defer subscription.Close()
	err := stream.Send(&netfencev1.EventBatch{DaemonId: s.opts.Status().DaemonID, InstanceId: s.opts.InstanceID, Number: 1})
	for number := uint64(2); err == nil; {
		var (
			observed []events.Event
			lost     uint64
		)
		observed, lost, err = subscription.Next(ctx)
		if err != nil {
			break
		}
		for _, batch := range batches(observed, lost) {
			batch.Number = number
			number++
			if err = stream.Send(batch); err != nil {
				break
			}
		}
	}
	if s.stopping.Err() != nil || errors.Is(err, events.ErrClosed) {
		return callErrorf(codes.Unavailable, "the daemon is stopping")
	}
	return err
}

// batches is at least one.
func batches(observed []events.Event, lost uint64) []*netfencev1.EventBatch {
	list := []*netfencev1.EventBatch{{Lost: lost}}
	for part := range slices.Chunk(observed, maxBatch) {
		batch := list[len(list)-1]
		if len(batch.GetEvents()) > 0 {
			batch = &netfencev1.EventBatch{}
			list = append(list, batch)
		}
		for _, e := range part {
			batch.Events = append(batch.Events, wireEvent(e))
		}
	}
	return list
}

func wireEvent(e events.Event) *netfencev1.Event {
	w := &netfencev1.Event{Time: timestamppb.New(e.Time), Id: e.Attachment}
	switch {
	case e.Flow != nil:
		w.Event = &netfencev1.Event_DeniedFlow{DeniedFlow: &netfencev1.DeniedFlow{
			Address:       address(e.Flow.Destination.Addr()),
			Port:          uint32(e.Flow.Destination.Port()),
			IpProtocol:    uint32(e.Flow.Protocol),
			Reason:        e.Flow.Reason,
			Names:         e.Flow.Names,
			SourceAddress: address(e.Flow.Source.Addr()),
			SourcePort:    uint32(e.Flow.Source.Port()),
			Length:        uint32(e.Flow.Length),
			Rule:          e.Flow.Rule,
			Audit:         e.Flow.WouldDeny,
		}}
	case e.Decision != nil:
		d := &netfencev1.DnsDecision{
			Domain: e.Decision.Name, QueryType: e.Decision.Type, Allowed: e.Decision.Allowed, Reason: e.Decision.Reason,
			Audit: e.Decision.WouldDeny,
		}
		for _, a := range e.Decision.Learned {
			d.Learned = append(d.Learned, a.String())
		}
		w.Event = &netfencev1.Event_DnsDecision{DnsDecision: d}
	case e.Incident != nil:
		w.Event = &netfencev1.Event_Incident{Incident: &netfencev1.Incident{Kind: e.Incident.Kind, Message: e.Incident.Message}}
	}
	return w
}

// address is empty for one that is not known.
func address(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}
