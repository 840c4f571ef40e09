// SPDX-License-Identifier: Apache-2.0

package controlclient

import (
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/internal/state"
	"github.com/netfence/netfence/internal/target"
	"github.com/netfence/netfence/internal/wire"
	"github.com/netfence/netfence/policy"
)

// sync sends the SyncRequest: every attachment that has a policy, as far as one event holds them.
// Pending ones are announced after it, those without room once the peer has answered.
func (s *session) sync() error {
	request := s.c.syncRequest()
	request.Policies = s.c.policies()
	size := proto.Size(request) + eventOverhead
	for _, a := range s.c.opts.Store.List() {
		switch {
		case a.OwnPolicy:
			continue
		case a.Removing != state.ReasonNone:
			// Its Unsubscribed follows when the kernel has let go of it.
			continue
		case a.Pending:
			// One that a local caller holds is announced by its Subscribe, which then is there to
			// hear the answer; one held by a daemon that died is about to be rolled back.
			if !a.Held || s.c.waiting(a.ID) {
				s.announce(a.ID)
			}
			continue
		}
		record := s.c.attachment(a)
		grown := size + protowire.SizeTag(attachmentsField) + protowire.SizeBytes(proto.Size(record))
		if grown > maxEventBytes {
			s.overflow = append(s.overflow, a.ID)
			continue
		}
		size = grown
		request.Attachments = append(request.Attachments, record)
	}
	return s.send(&netfencev1.DaemonEvent{Event: &netfencev1.DaemonEvent_Sync{Sync: request}})
}

// eventOverhead is room for the event around a message.
const eventOverhead = 64

// Fields of SyncRequest (wire.md, "Daemon → control plane" and "Our additions").
const (
	attachmentsField = 3
	policiesField    = 101
)

// syncRequest is what the daemon tells of itself.
func (c *Client) syncRequest() *netfencev1.SyncRequest {
	c.mu.Lock()
	defer c.mu.Unlock()
	hello := &netfencev1.Hello{
		Features:        wire.Features(),
		InstanceId:      c.opts.InstanceID,
		StreamSeq:       c.streams,
		MaxCommandBytes: uint64(c.opts.MaxCommandBytes),
	}
	if c.link.err != nil {
		hello.LastStreamError = clip(c.link.err.Error())
	}
	return &netfencev1.SyncRequest{
		DaemonId: c.opts.DaemonID,
		Hostname: c.opts.Hostname,
		Metadata: c.opts.Metadata,
		Hello:    hello,
	}
}

// policies are the named ones that the daemon holds, as far as a third of an event holds them: one that is left out is
// sent again, which changes nothing.
func (c *Client) policies() []*netfencev1.PolicyRef {
	var refs []*netfencev1.PolicyRef
	size := 0
	for _, n := range c.opts.Store.NamedPolicies() {
		ref := wire.PolicyRef(wire.Ref{Name: n.Name, Revision: n.Revision})
		if size += protowire.SizeTag(policiesField) + protowire.SizeBytes(proto.Size(ref)); size > maxEventBytes/3 {
			break
		}
		refs = append(refs, ref)
	}
	return refs
}

func (c *Client) syncRequestSize() int { return proto.Size(c.syncRequest()) + maxText }

func (c *Client) attachment(a state.Attachment) *netfencev1.Attachment {
	p, applied := c.observed(a)
	return &netfencev1.Attachment{
		Id:         a.ID,
		Target:     a.Target.Name,
		Type:       attachmentType(a.Target.Type),
		Mode:       wire.Mode(p.Mode),
		DnsMode:    wire.DNSMode(p.DNS.Mode),
		Metadata:   a.Metadata,
		Applied:    applied,
		DnsAddress: c.dnsAddress(a.ID),
	}
}

// subscribed is without Applied, which is not for every peer nor for a new attachment.
func (c *Client) subscribed(a state.Attachment) *netfencev1.Subscribed {
	p, _ := c.observed(a)
	return &netfencev1.Subscribed{
		Id:         a.ID,
		Target:     a.Target.Name,
		Type:       attachmentType(a.Target.Type),
		Mode:       wire.Mode(p.Mode),
		DnsMode:    wire.DNSMode(p.DNS.Mode),
		DnsAddress: c.dnsAddress(a.ID),
		Metadata:   a.Metadata,
	}
}

// observed is what is in force of a, and by the control plane's name for it. A policy that is desired but
// not yet in force has no name here: the control plane sends it again, which changes nothing.
func (c *Client) observed(a state.Attachment) (*policy.Policy, *netfencev1.Applied) {
	_, status, err := c.opts.Store.Get(a.ID)
	if err != nil || status.InForce == nil {
		// Gone meanwhile, or not looked at yet since the daemon started.
		return a.Policy, wire.Applied(wire.Ref{}, a.Policy, status.LastError)
	}
	return status.InForce, wire.Applied(c.inForce(a.ID), status.InForce, status.LastError)
}

// inForce is the control plane's name for what is in force for id; zero: none.
func (c *Client) inForce(id string) wire.Ref {
	a, status, err := c.opts.Store.Get(id)
	if err != nil || status.Applied < a.Revision {
		return wire.Ref{}
	}
	return wire.Ref{Name: a.PolicyName, Revision: a.PolicyRevision}
}

func (c *Client) dnsAddress(id string) string {
	if c.opts.DNSAddress == nil {
		return ""
	}
	return c.opts.DNSAddress(id)
}

func attachmentType(t target.Type) netfencev1.AttachmentType {
	switch t {
	case target.Interface:
		return netfencev1.AttachmentType_ATTACHMENT_TYPE_TC
	case target.Cgroup:
		return netfencev1.AttachmentType_ATTACHMENT_TYPE_CGROUP
	default:
		return netfencev1.AttachmentType_ATTACHMENT_TYPE_UNSPECIFIED
	}
}
