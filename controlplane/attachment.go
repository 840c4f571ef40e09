// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"cmp"
	"iter"
	"maps"
	"slices"
	"time"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
)

// TargetType is what an attachment filters.
type TargetType uint8

// An unknown type is that of a daemon newer than this package.
const (
	UnknownType TargetType = iota
	Interface
	Cgroup
)

func (t TargetType) String() string {
	switch t {
	case Interface:
		return "interface"
	case Cgroup:
		return "cgroup"
	default:
		return "unknown"
	}
}

// Attachment is one filtered target of a daemon, as it was when it was asked for.
type Attachment struct {
	ID       string // a UUID
	DaemonID string
	Target   string // name of the interface, or absolute path of the cgroup
	Type     TargetType
	Metadata map[string]string // as given on attach
	Host     string            // host name of the daemon
	// HostMetadata is the daemon's own, from its configuration; not to be changed.
	HostMetadata map[string]string
	DNSAddress   string // of its DNS server; empty without, or as long as it is not told

	// Pending: it waits for its first policy, and is closed.
	Pending bool
	// Decided: a decision was made for it since its daemon connected. What is in force was not decided here otherwise.
	Decided bool
	// Status is what became of the last decision.
	Status Status
	// Revision of what is in force, as far as the daemon told; see Revision. Empty: not known.
	Revision string
	Error    string // the last refusal since then
	Stats    Stats  // as of the last heartbeat
}

// Stats are the counters of an attachment since it was attached.
type Stats struct {
	ID                                   string
	PacketsAllowed, PacketsBlocked       uint64
	DNSQueriesAllowed, DNSQueriesBlocked uint64
}

// Daemon is one host.
type Daemon struct {
	ID       string
	Hostname string
	Metadata map[string]string // not to be changed
	Address  string            // that it connected from
	// Published: it announced nothing, so it knows no more than the published protocol.
	Published   bool
	Features    []string  // those that it announced and this package knows
	Since       time.Time // of its stream; when Connected is false, of its end
	Connected   bool
	Err         error  // what ended the last stream
	LastError   string // what ended the stream before this one, in the daemon's words
	Attachments int
	Waiting     int // attachments for which a decision is not yet in force, refused or given up
}

// Reason is why an attachment ended.
type Reason uint8

// Lost: its daemon came back without it, and the message that said why was lost with a stream.
const (
	ReasonLost     Reason = iota
	ReasonRemoved         // the target vanished
	ReasonDetached        // somebody on the host detached it
	ReasonError           // it was rolled back, or cannot be filtered any more
)

func (r Reason) String() string {
	switch r {
	case ReasonRemoved:
		return "removed"
	case ReasonDetached:
		return "detached"
	case ReasonError:
		return "error"
	default:
		return "lost"
	}
}

// Detached says how an attachment ended.
type Detached struct {
	Reason Reason
	Error  string // for ReasonError
}

// Selector selects attachments: those that all of its fields speak for. The zero value selects all.
type Selector struct {
	ID       string
	DaemonID string
	Metadata map[string]string // all must match
	// Match is for anything else. It must not call the control plane.
	Match func(Attachment) bool
}

func (s *Selector) selects(d *daemon, a *attachment) bool {
	if s.ID != "" && s.ID != a.id() {
		return false
	}
	if !a.labels.match(s.Metadata) {
		return false
	}
	return s.Match == nil || s.Match(d.view(a))
}

// Attachments yields the attachments that are selected, in the order of daemons and ids. Those of a daemon without a
// stream are as they were when it ended.
func (c *ControlPlane) Attachments(selector Selector) iter.Seq[Attachment] {
	return func(yield func(Attachment) bool) {
		for _, d := range c.selected(selector) {
			var list []Attachment
			d.mu.Lock()
			for _, a := range d.attachments {
				if !a.absent && selector.selects(d, a) {
					list = append(list, d.view(a))
				}
			}
			d.mu.Unlock()
			slices.SortFunc(list, func(a, b Attachment) int { return cmp.Compare(a.ID, b.ID) })
			for _, a := range list {
				if !yield(a) {
					return
				}
			}
		}
	}
}

// Daemons lists the daemons in the order of their ids: those with a stream, and those that had one within
// Options.Remember.
func (c *ControlPlane) Daemons() []Daemon {
	all := c.selected(Selector{})
	list := make([]Daemon, len(all))
	for i, d := range all {
		d.mu.Lock()
		list[i] = d.describe()
		d.mu.Unlock()
	}
	return list
}

// selected lists the daemons that a selector may find something at.
func (c *ControlPlane) selected(selector Selector) []*daemon {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if selector.DaemonID != "" {
		if d := c.daemons[selector.DaemonID]; d != nil {
			return []*daemon{d}
		}
		return nil
	}
	return slices.SortedFunc(maps.Values(c.daemons), func(a, b *daemon) int { return cmp.Compare(a.id, b.id) })
}

func targetType(t netfencev1.AttachmentType) TargetType {
	switch t {
	case netfencev1.AttachmentType_ATTACHMENT_TYPE_TC:
		return Interface
	case netfencev1.AttachmentType_ATTACHMENT_TYPE_CGROUP:
		return Cgroup
	default:
		return UnknownType
	}
}

func reason(r netfencev1.UnsubscribeReason) Reason {
	switch r {
	case netfencev1.UnsubscribeReason_UNSUBSCRIBE_REASON_REMOVED:
		return ReasonRemoved
	case netfencev1.UnsubscribeReason_UNSUBSCRIBE_REASON_DETACHED:
		return ReasonDetached
	default:
		return ReasonError
	}
}
