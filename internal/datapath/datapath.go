// SPDX-License-Identifier: Apache-2.0

// Package datapath owns what lives in the kernel: the programs, their maps, the
// links that hold them to interfaces and cgroups, and the pins that keep all of
// it there while no daemon runs.
//
// Programs and maps exist once for all attachments. An attachment is an index
// into those maps, a policy word (mode, flags and the slot of its rules in one
// aligned 64-bit value) and a few pinned links. Nothing here needs a file
// descriptor per attachment.
//
// Pins, below Config.Dir:
//
//	v3/maps/NAME       the maps
//	v3/links/ID/HOOK   the links of an attachment; a directory: see clsact
//	v3/links/tmp_ID/   one being attached or detached; removed by Open
//	v3/foreign/        what somebody else had pinned where a link was to be
//
// A cgroup has but one link there, see linkless.
//
// The kernel side describes itself: Open needs no other state than the pins.
package datapath

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/cilium/ebpf"

	"github.com/netfence/netfence/internal/events"
	"github.com/netfence/netfence/internal/target"
)

// maxAttachments is how many attachments the maps hold; index 0 is nobody.
const maxAttachments = uint32(bpfLimitMAX_ATTACHMENTS)

// sweepInterval is how often flows and learned addresses that are over give their
// room back. They permit nothing after their deadline, swept or not.
const sweepInterval = 10 * time.Second

var (
	// ErrFull says that the kernel has no room for what was asked. Nothing changed.
	ErrFull = errors.New("no room left in the kernel")
	// ErrNotAttached says that the id is unknown to the kernel side.
	ErrNotAttached = errors.New("not attached")
	// ErrVanished says that the target is no longer what was attached.
	ErrVanished = errors.New("target has vanished")

	errOnlyCgroups = errors.New("not an interface: opened for cgroups only")
)

// Config says where the pins are, and the limits. Zero is the default of each.
type Config struct {
	Dir      string // on a bpffs, see EnsureBPFFS
	MaxFlows uint64 // per attachment; default 4096
	Log      *slog.Logger

	// MaxLearned and MaxNames bound the addresses and the names that an
	// attachment has learned; default 4096 each.
	MaxLearned, MaxNames int
	// Grace is added to the TTL of an answer; default 30 s.
	Grace time.Duration
	// MaxFlowTCP and MaxFlowOther bound how long a flow to a learned address goes
	// on after its name was last learned; default 24 h and 4 h.
	MaxFlowTCP, MaxFlowOther time.Duration

	// Events is told what is dropped, what was lost of that, and of incidents, by two
	// goroutines; nil: nobody is. While it waits, more is lost; packets never wait for it.
	Events func(events.Event)
	// EventRate bounds the events a second of an attachment; 0: events.DefaultRate.
	EventRate int

	// InterfaceHook is how programs get onto interfaces from now on; those that are
	// attached stay as they are.
	InterfaceHook InterfaceHook

	// Only leaves out what the targets of other kinds need, which takes less time.
	Only Only
	// MaxAttachments bounds the attachments, and with them the memory and the time
	// that the maps take; 0: as many as there can be. What is pinned has its size.
	MaxAttachments int
}

// learningLimits are those of Config, with the defaults in place.
type learningLimits struct {
	addrs, names          int
	freeNames, freeChunks int // in the maps, for all attachments
	grace                 time.Duration
	nameAge               time.Duration // that a name may have without being told of again
}

func (c Config) learningLimits() learningLimits {
	return learningLimits{
		addrs: cmp.Or(c.MaxLearned, 4096), names: cmp.Or(c.MaxNames, 4096),
		grace:   cmp.Or(c.Grace, 30*time.Second),
		nameAge: min(time.Minute, cmp.Or(c.MaxFlowTCP, 24*time.Hour)/64, cmp.Or(c.MaxFlowOther, 4*time.Hour)/64),
	}
}

// Datapath is the kernel side of all attachments.
type Datapath struct {
	config Config
	pins   pins
	log    *slog.Logger
	bpf    bpfObjects
	ours   *ours
	only   Only

	filters bool         // new attachments of interfaces are filters, not links
	returns atomic.Int64 // device with the filter that leads DNS answers back; 0: none

	problems problems
	witness  *witness // nil: nobody is told of events
	onLink   *onLink  // nil: opened for cgroups only

	// mu guards what follows. Lock order: attachment.mu before mu, mu before slots.mu.
	mu       sync.Mutex
	known    map[string]*attachment
	indices  indices
	ended    Counters // of attachments that are gone; see Census
	listener DNSListener

	nesting nesting
	walks   walks
	places  places

	lease atomic.Int64 // as in the kernel; see SetLease

	// byIndex finds an attachment without mu; entries change with known.
	byIndex []atomic.Pointer[attachment]
	limits  learningLimits
	room    room
	lessons *ebpf.Memory // of nf_lessons

	slots *slots

	earlier  replacements  // of an earlier daemon's programs
	renewed  chan struct{} // closed when that has been tried for all
	renewErr error         // the first that stood in the way

	stop context.CancelFunc
	done sync.WaitGroup
}

// attachment is what the daemon remembers of an entry in nf_attachments.
type attachment struct {
	// mu serialises Attach, Replace, Learn and Detach of one attachment.
	// Whoever locks several does so in the order of their indices.
	mu     sync.Mutex
	index  uint32
	record bpfAttachment
	word   uint64
	slot   *slot // nil: no rules
	gone   bool  // detached while somebody waited for mu

	target target.Target // as Attach was last told; none: it has not been since Open
	intact time.Time     // when it was last seen as it was left
	// earlier: an earlier daemon's programs are on the target still.
	earlier bool
	held    bool // renew has just seen all in place on a cgroup, and nobody has looked since
	leads   leads
	counts  atomic.Bool // the counters at its index are its own, not those of who had it before

	around []uint64 // ids of the cgroups that this one is in, the nearest first; under nesting.mu
	placed bool     // around is known; under nesting.mu
	behind []int    // nsids of the other namespaces that its processes are in; under nesting.mu
	peer   int      // nsid of the namespace that an interface leads to, -1: none; under nesting.mu

	// member is what Replace has put in force; nil: nothing since Open or Attach,
	// or the attachment is being detached. Written with mu held.
	member  atomic.Pointer[Member]
	version uint64 // of member
	rules   atomic.Pointer[rules]
	memory  memory
	lessons uint64        // as nf_lessons has it
	roomed  time.Duration // when makeRoom last looked, on the boot clock
}

// Attached is what the kernel holds of one attachment.
type Attached struct {
	ID          string
	Type        target.Type
	Ifindex     int    // interface
	NetnsCookie uint64 // interface
	CgroupID    uint64 // cgroup
}

// Attachments lists what the kernel holds, in no order.
func (d *Datapath) Attachments() []Attached {
	d.mu.Lock()
	defer d.mu.Unlock()
	list := make([]Attached, 0, len(d.known))
	for id, a := range d.known {
		at := Attached{ID: id, Type: target.Cgroup, CgroupID: a.record.Scope}
		if isInterface(a.record) {
			at = Attached{ID: id, Type: target.Interface, Ifindex: int(a.record.Ifindex), NetnsCookie: a.record.Scope}
		}
		list = append(list, at)
	}
	return list
}

// IDs lists the attachments that the kernel holds, in no order.
func (d *Datapath) IDs() ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	ids := make([]string, 0, len(d.known))
	for id := range d.known {
		ids = append(ids, id)
	}
	return ids, nil
}

// Close releases file descriptors. Pinned links keep filtering; see RemoveAll.
// Events that nobody has been told of yet are dropped; see DrainEvents.
func (d *Datapath) Close() error {
	d.stop()
	err := errors.Join(d.witness.close(), d.onLink.close())
	d.done.Wait()
	return errors.Join(err, d.earlier.close(), d.unlisten(), closeBPF(&d.bpf))
}

// lock returns the attachment with its mutex held, or nil.
func (d *Datapath) lock(id string) *attachment {
	d.mu.Lock()
	a := d.known[id]
	d.mu.Unlock()
	if a == nil {
		return nil
	}
	a.mu.Lock()
	if a.gone {
		a.mu.Unlock()
		return nil
	}
	return a
}

// sweep ends flows that are over until ctx is done.
func (d *Datapath) sweep(ctx context.Context) {
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := d.sweepOnce(); err != nil {
				d.log.Warn("flows or learned addresses not swept", "err", err)
			}
			if err := d.endDNSFlows(); err != nil {
				d.log.Warn("DNS flows not swept", "err", err)
			}
		}
	}
}

// sweepOnce ends flows that are over, then forgets what nobody needs.
func (d *Datapath) sweepOnce() error {
	walked, err := BootClock()
	if err != nil {
		return err
	}
	if err := d.endFlows(0); err != nil {
		return err // without the walk nothing is known of what flows need
	}
	return d.sweepLearned(walked)
}

func isInterface(r bpfAttachment) bool {
	return r.Flags&uint32(bpfAttachmentFlagATTACHMENT_INTERFACE) != 0
}

// describe is how the kernel is told who the attachment is.
func describe(id string, t target.Target) (bpfAttachment, error) {
	key, err := uuid.Parse(id)
	if err != nil || key == uuid.Nil {
		return bpfAttachment{}, fmt.Errorf("attachment id %q: not a UUID", id)
	}
	switch t.Type {
	case target.Interface:
		r := bpfAttachment{
			Id: key, Scope: t.NetnsCookie, Ifindex: uint32(t.Ifindex),
			Flags: uint32(bpfAttachmentFlagATTACHMENT_INTERFACE),
		}
		if t.Headerless {
			r.Flags |= uint32(bpfAttachmentFlagATTACHMENT_HEADERLESS)
		}
		switch t.Direction {
		case target.Ingress:
		case target.Egress:
			r.Flags |= uint32(bpfAttachmentFlagATTACHMENT_EGRESS)
		default:
			return bpfAttachment{}, fmt.Errorf("interface %s: no direction", t.Name)
		}
		return r, nil
	case target.Cgroup:
		return bpfAttachment{Id: key, Scope: t.CgroupID, Level: uint32(t.Level)}, nil
	}
	return bpfAttachment{}, fmt.Errorf("attachment %s: no target", id)
}

// sameTarget compares what identifies a target, not how often it was attached.
func sameTarget(a, b bpfAttachment) bool {
	a.Incarnation, b.Incarnation = 0, 0
	return a == b
}

// full marks errors that say that the kernel has no room.
func full(err error) error {
	for _, no := range []error{unix.E2BIG, unix.ENOSPC, unix.ENOMEM} {
		if errors.Is(err, no) {
			return fmt.Errorf("%w: %w", ErrFull, err)
		}
	}
	return err
}
