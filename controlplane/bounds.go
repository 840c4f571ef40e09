// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
)

// What a daemon may tell. Its own limits are tighter, but it is not trusted to keep them.
const (
	maxID       = 256
	maxText     = 4096    // bytes of a target, a host name, a reason
	maxMetadata = 1 << 20 // bytes of one attachment's or the daemon's
	perEach     = 8 << 10 // bytes of an attachment, as the mean of all that one daemon may have
)

// checkSync judges a SyncRequest before anything of it is kept.
func (c *ControlPlane) checkSync(m *netfencev1.SyncRequest) error {
	switch {
	case m.GetDaemonId() == "":
		return status.Error(codes.InvalidArgument, "daemon_id: empty")
	case len(m.GetDaemonId()) > maxID:
		return status.Errorf(codes.InvalidArgument, "daemon_id: longer than %d bytes", maxID)
	case len(m.GetHostname()) > maxText:
		return status.Errorf(codes.InvalidArgument, "hostname: longer than %d bytes", maxText)
	case metadataBytes(m.GetMetadata()) > maxMetadata:
		return status.Errorf(codes.InvalidArgument, "metadata: more than %d bytes", maxMetadata)
	case len(m.GetAttachments()) > c.opts.Attachments:
		return c.tooMany()
	case len(m.GetPolicies()) > c.opts.Attachments:
		return status.Errorf(codes.ResourceExhausted, "policies: more than %d", c.opts.Attachments)
	case len(m.GetHello().GetInstanceId()) > maxID:
		return status.Errorf(codes.InvalidArgument, "hello.instance_id: longer than %d bytes", maxID)
	}
	for _, ref := range m.GetPolicies() {
		if len(ref.GetName()) > maxID || len(ref.GetRevision()) > maxID {
			return status.Errorf(codes.InvalidArgument, "policies: a name or revision longer than %d bytes", maxID)
		}
	}
	for _, a := range m.GetAttachments() {
		if err := checkAttachment(a); err != nil {
			return err
		}
	}
	return nil
}

// told is an Attachment or a Subscribed.
type told interface {
	GetId() string
	GetTarget() string
	GetDnsAddress() string
	GetType() netfencev1.AttachmentType
	GetMetadata() map[string]string
	GetApplied() *netfencev1.Applied
}

func checkAttachment(m told) error {
	applied := m.GetApplied()
	switch {
	case m.GetId() == "" || len(m.GetId()) > maxID:
		return status.Errorf(codes.InvalidArgument, "attachment id: 1 to %d bytes", maxID)
	case len(m.GetTarget()) > maxText:
		return status.Errorf(codes.InvalidArgument, "attachment target: longer than %d bytes", maxText)
	case len(m.GetDnsAddress()) > maxID:
		return status.Errorf(codes.InvalidArgument, "attachment dns_address: longer than %d bytes", maxID)
	case metadataBytes(m.GetMetadata()) > maxMetadata:
		return status.Errorf(codes.InvalidArgument, "attachment metadata: more than %d bytes", maxMetadata)
	case len(applied.GetRevision()) > maxID || len(applied.GetPolicyName()) > maxID:
		return status.Errorf(codes.InvalidArgument, "attachment applied: longer than %d bytes", maxID)
	}
	return nil
}

func metadataBytes(metadata map[string]string) int {
	n := 0
	for key, value := range metadata {
		n += len(key) + len(value)
	}
	return n
}

// bounded judges what a daemon has in all.
func (d *daemon) bounded() error {
	if len(d.attachments) > d.plane.opts.Attachments {
		return d.plane.tooMany()
	}
	if limit := int64(d.plane.opts.Attachments) * perEach; int64(d.bytes) > limit {
		return status.Errorf(codes.ResourceExhausted, "attachments: their metadata takes more than %d bytes", limit)
	}
	return nil
}

func (c *ControlPlane) tooMany() error {
	return status.Errorf(codes.ResourceExhausted, "attachments: more than %d", c.opts.Attachments)
}

// clip cuts text of a daemon's.
func clip(s string) string {
	if len(s) <= maxText {
		return s
	}
	return strings.ToValidUTF8(s[:maxText-len("…")], "") + "…"
}
