// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/target"
)

// Attach filters t under id, closed: block-all, until Replace says otherwise.
// For an attachment that is there already it verifies the target and puts back
// what somebody else, or a Detach that failed, took away. A failed Attach leaves
// nothing behind.
//
// It takes two waits for RCU on an interface (concurrent, 8 ms on an idle
// kernel) and none on a cgroup.
func (d *Datapath) Attach(id string, t target.Target) error {
	record, err := describe(id, t)
	if err != nil {
		return err
	}
	if d.only == Cgroups && isInterface(record) {
		return fmt.Errorf("attach %s %s: %w", t.Type, t.Name, errOnlyCgroups)
	}
	if a := d.lock(id); a != nil {
		defer a.mu.Unlock()
		return d.reattach(a, id, t, record)
	}
	a, err := d.reserve(id, record)
	if err != nil {
		return err
	}
	defer a.mu.Unlock()
	if err := d.attach(a, id, t); err != nil {
		return errors.Join(fmt.Errorf("attach %s %s: %w", t.Type, t.Name, err), d.abandon(a, id))
	}
	return nil
}

// reserve takes an index and a fresh incarnation. It returns with a.mu held.
func (d *Datapath) reserve(id string, record bpfAttachment) (*attachment, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.known[id] != nil {
		return nil, fmt.Errorf("attachment %s: being attached by somebody else", id)
	}
	index, err := d.indices.take(d.slots.grace)
	if err != nil {
		return nil, err
	}
	record.Incarnation, err = d.nextIncarnation()
	if err != nil {
		d.indices.free = append(d.indices.free, index)
		return nil, err
	}
	a := &attachment{index: index, record: record}
	a.mu.Lock()
	d.known[id] = a
	d.byIndex[a.index].Store(a)
	return a, nil
}

func (d *Datapath) nextIncarnation() (uint32, error) {
	var last uint64
	if err := d.bpf.NfMeta.Lookup(uint32(0), &last); err != nil {
		return 0, fmt.Errorf("last incarnation: %w", err)
	}
	next := last + 1
	if next>>32 != 0 {
		return 0, fmt.Errorf("%w: incarnations are used up (restart with `netfenced detach --all`)", ErrFull)
	}
	if err := d.bpf.NfMeta.Put(uint32(0), next); err != nil {
		return 0, fmt.Errorf("next incarnation: %w", err)
	}
	return uint32(next), nil
}

// attach makes a closed filter. Everything that a packet looks up stands before
// the first link; the links are published, by a rename, when all are pinned.
func (d *Datapath) attach(a *attachment, id string, t target.Target) error {
	if err := d.nesting.enter(a, t); err != nil {
		return err
	}
	if err := d.enter(a); err != nil {
		return err
	}
	dir := d.pins.pending(id)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("pin directory: %w", err)
	}
	hooks := d.hooks(a.record)
	if err := d.hold(a, hooks, dir); err != nil {
		return err
	}
	if err := unix.Renameat2(unix.AT_FDCWD, dir, unix.AT_FDCWD, d.pins.attached(id), unix.RENAME_NOREPLACE); err != nil {
		return fmt.Errorf("publish links: %w", err)
	}
	a.target, a.intact = t, time.Now()
	return nil
}

// enter writes what the programs will find: closed, with counters at zero.
func (d *Datapath) enter(a *attachment) error {
	if err := d.close(a); err != nil {
		return err
	}
	if err := d.zeroCounters(a.index); err != nil {
		return err
	}
	a.counts.Store(true)
	if err := d.bpf.NfFlowCounts.Put(a.index, uint64(0)); err != nil {
		return fmt.Errorf("flow count: %w", err)
	}
	if err := d.setLessons(a, 0); err != nil {
		return err
	}
	if err := d.bpf.NfEventBuckets.Put(a.index, &bpfEventBucket{}); err != nil {
		return fmt.Errorf("event bucket: %w", err)
	}
	if err := d.bpf.NfAttachments.Put(a.index, &a.record); err != nil {
		return fmt.Errorf("attachment record: %w", err)
	}
	if !isInterface(a.record) {
		return nil // has no place to write it before the first link
	}
	d.onLink.enter(a.record)
	return d.own(a)
}

// own writes which attachment the target is, unless it is another's.
func (d *Datapath) own(a *attachment) error {
	claim := d.claimCgroup
	if isInterface(a.record) {
		claim = d.claimInterface
	}
	owner, err := claim(a)
	if err != nil {
		return err
	}
	if owner != identity(a) {
		return errors.New("filtered already by another attachment")
	}
	return nil
}

// claimInterface returns whose the interface is, this attachment's if it was nobody's.
func (d *Datapath) claimInterface(a *attachment) (owner uint64, err error) {
	key := bpfInterfaceKey{Netns: a.record.Scope, Ifindex: a.record.Ifindex}
	owner = identity(a)
	err = d.bpf.NfInterfaces.Update(&key, owner, ebpf.UpdateNoExist)
	if errors.Is(err, ebpf.ErrKeyExist) {
		err = d.bpf.NfInterfaces.Lookup(&key, &owner)
	}
	if err == nil && owner == identity(a) {
		err = d.takePlace(a)
	}
	if err != nil {
		return 0, fmt.Errorf("interface identity: %w", full(err))
	}
	return owner, nil
}

// claimCgroup likewise. The cgroup must have a link.
func (d *Datapath) claimCgroup(a *attachment) (owner uint64, err error) {
	err = d.bpf.NfCgroups.Lookup(a.record.Scope, &owner)
	if err == nil && owner == 0 {
		owner = identity(a)
		err = d.bpf.NfCgroups.Put(a.record.Scope, owner)
	}
	if err != nil {
		return 0, fmt.Errorf("cgroup identity: %w", err)
	}
	return owner, nil
}

// hold puts the hooks on the target, the verdict before anything else.
func (d *Datapath) hold(a *attachment, hooks []hook, dir string) error {
	if isInterface(a.record) {
		var g errgroup.Group // each waits for RCU
		for _, h := range hooks {
			g.Go(func() error { return h.by.hold(h, dir, int(a.record.Ifindex)) })
		}
		return g.Wait()
	}
	return onCgroup(a.record.Scope, func(fd int) error {
		for _, h := range hooks {
			if err := h.by.hold(h, dir, fd); err != nil {
				return err
			}
			if h.name != verdictHook {
				continue
			}
			// Storage can be written only once a program is there; until then it is
			// zero, which is closed.
			if err := d.own(a); err != nil {
				return err
			}
		}
		return nil
	})
}

// reattach is Attach for an id that the kernel knows.
func (d *Datapath) reattach(a *attachment, id string, t target.Target, record bpfAttachment) error {
	if !sameTarget(a.record, record) {
		return fmt.Errorf("attachment %s: %s %s is not what it was attached to: %w", id, t.Type, t.Name, ErrVanished)
	}
	if err := d.nesting.enter(a, t); err != nil {
		return fmt.Errorf("attach %s %s: %w", t.Type, t.Name, err)
	}
	if err := d.renew(a); err != nil {
		return err
	}
	if !a.held {
		gone, dead, err := lost(d.hooks(a.record), d.pins.attached(id), a.record)
		if err != nil {
			return err
		}
		// Another interface may have the index of one that is gone; no cgroup has another's id.
		if dead && (isInterface(a.record) || !alive(a.record, t)) {
			return fmt.Errorf("attachment %s: no link holds %s %s any more: %w", id, t.Type, t.Name, ErrVanished)
		}
		if len(gone) > 0 {
			if err := d.putBack(a, id, gone); err != nil {
				return fmt.Errorf("attach %s %s: %w", t.Type, t.Name, err)
			}
		}
	}
	a.held = false
	if err := d.own(a); err != nil {
		return fmt.Errorf("attach %s %s: %w", t.Type, t.Name, err)
	}
	a.target = t
	return nil
}

// putBack holds hooks that somebody else, or a Detach that failed, took away.
func (d *Datapath) putBack(a *attachment, id string, gone []hook) error {
	d.log.Warn("links were taken away, put back", "attachment", id, "links", len(gone))
	dir := d.pins.attached(id)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("pin directory: %w", err)
	}
	return d.hold(a, gone, dir)
}

// Detach ends an attachment. One that is not there is no error.
func (d *Datapath) Detach(id string) error {
	a := d.lock(id)
	if a == nil {
		return nil
	}
	defer a.mu.Unlock()
	if err := d.detach(a, id); err != nil {
		return fmt.Errorf("detach %s: %w", id, err)
	}
	return nil
}

// detach takes the links away as one step, the rename: a crash before it leaves
// a closed attachment, a crash after it leaves what Open removes.
func (d *Datapath) detach(a *attachment, id string) error {
	if err := d.close(a); err != nil {
		return err
	}
	if err := d.disown(a); err != nil {
		return err
	}
	err := os.Rename(d.pins.attached(id), d.pins.pending(id))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("retract links: %w", err)
	}
	return d.abandon(a, id)
}

// abandon removes what attach or detach has left, and gives the index back.
func (d *Datapath) abandon(a *attachment, id string) error {
	if err := d.ours.leave(a.record); err != nil {
		return err
	}
	if err := d.ours.unpin(d.pins.pending(id)); err != nil {
		return err
	}
	if err := d.forget(a); err != nil {
		return err
	}
	if a.slot != nil {
		d.slots.release(a.slot)
	}
	d.nesting.leave(a)
	d.problems.forget(id)
	a.gone = true
	var last Counters
	if a.counts.Load() {
		var err error
		if last, err = d.readCounters(a.index); err != nil {
			d.log.Warn("last counters not read", "attachment", id, "err", err)
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ended.Add(last)
	delete(d.known, id)
	d.byIndex[a.index].Store(nil)
	d.indices.release(a)
	return nil
}

// forget clears every entry that names the attachment; its links are gone.
func (d *Datapath) forget(a *attachment) error {
	if err := d.close(a); err != nil {
		return err
	}
	if err := d.disown(a); err != nil {
		return err
	}
	if isInterface(a.record) {
		key := bpfInterfaceKey{Netns: a.record.Scope, Ifindex: a.record.Ifindex}
		var owner uint64
		err := d.bpf.NfInterfaces.Lookup(&key, &owner)
		if err == nil && owner == identity(a) {
			err = d.bpf.NfInterfaces.Delete(&key)
		}
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("interface identity: %w", err)
		}
		if err := d.onLink.leave(a.record); err != nil {
			return err
		}
	}
	if err := d.forgetLearned(a); err != nil {
		return err
	}
	if err := d.endFlows(a.index); err != nil {
		return err
	}
	if err := d.bpf.NfAttachments.Put(a.index, &bpfAttachment{}); err != nil {
		return fmt.Errorf("attachment record: %w", err)
	}
	return nil
}

// disown makes the target nobody's at the first place where programs look. A
// cgroup's storage outlives its links: its next attachment must find it closed.
func (d *Datapath) disown(a *attachment) error {
	if isInterface(a.record) {
		return d.leavePlace(a)
	}
	var owner uint64
	err := d.bpf.NfCgroups.Lookup(a.record.Scope, &owner)
	if err == nil && owner == identity(a) {
		err = d.bpf.NfCgroups.Put(a.record.Scope, uint64(0))
	}
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("cgroup identity: %w", err)
	}
	return nil
}

// identity is what the programs find for a target: who, and which life of it.
func identity(a *attachment) uint64 {
	return uint64(a.index) | uint64(a.record.Incarnation)<<32
}
