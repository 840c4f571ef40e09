// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/netfence/netfence/policy"
)

// ErrStale says that the policy changed between the decision and the call. The
// caller decides anew.
var ErrStale = errors.New("policy has changed meanwhile")

// ErrBusy says that somebody changes what is in force for an attachment, and that
// the caller did not want to wait.
var ErrBusy = errors.New("policy is being changed")

// refreshInterval is how much less of its grace an address may have. When a name
// was last learned the kernel knows less exactly, to learningLimits.nameAge:
// dns.max_flow, which counts from then, is hours.
const refreshInterval = 3 * time.Second

// Member is one attachment that a DNS query concerns, with what is in force for
// it. It is a snapshot.
type Member struct {
	ID    string
	Index uint32
	Names *policy.Names // never nil

	incarnation uint32
	// version counts what Replace has put in force. The generation of the word
	// would not do: a policy that differs only in its names needs no new word.
	version uint64
	leased  bool // see ReplaceLeased
}

// Lesson is what one answer teaches one attachment.
type Lesson struct {
	Member Member
	Name   string       // canonical: lower case, no final dot
	Grant  policy.Grant // why, and for which ports
	Addrs  []netip.Addr
	TTL    time.Duration // clamped; the grace is added here
}

// LimitError says which limit of an attachment keeps it from learning. It is an ErrFull.
type LimitError struct {
	Attachment string // id
	Limit      string // below "limits" in the configuration: "learned", "names"
	Max        int
}

func (e *LimitError) Error() string {
	return fmt.Sprintf("limits.%s: %d are in use", e.Limit, e.Max)
}

// Unwrap makes it an ErrFull.
func (e *LimitError) Unwrap() error { return ErrFull }

// Chain returns the attachments that a query of the attachment at index
// concerns, the innermost first: a cgroup's and those of the cgroups around it.
// None: the index is nobody's, or no policy has been put in force for one of them
// by this daemon, or it has not been told yet where the cgroup is.
func (d *Datapath) Chain(index uint32) []Member {
	a := d.at(index)
	if a == nil {
		return nil
	}
	var chain []Member
	for _, around := range d.nesting.outward(a) {
		m := around.member.Load()
		if m == nil || m.leased && d.leaseIsOver() {
			return nil
		}
		chain = append(chain, *m)
	}
	return chain
}

// at is the attachment at an index, without a lock; nil: nobody.
func (d *Datapath) at(index uint32) *attachment {
	if index >= maxAttachments {
		return nil
	}
	return d.byIndex[index].Load()
}

// Learn permits what the lessons teach and returns when the kernel holds every
// address: callers answer the DNS query afterwards, never before. With an error
// it has permitted nothing. ErrStale: decide anew; ErrFull: there is no room, a
// *LimitError if it is the attachment's own; ErrBusy, unless it may wait: call again.
//
// A grant is only ever extended: a shorter TTL does not cut access given before.
//
// What the kernel holds already, but for three seconds of an address's grace, and a
// minute of a name's age, it is not told again. That is as safe as writing it: the locks are held that whoever cuts a
// name, sweeps or detaches takes; the policies are those that the lessons come
// from; the memory is what the maps are by now, and its entries were counted as
// lessons before the locks were given back. A cut that is prepared, but not yet in
// force, makes a name unknown here.
func (d *Datapath) Learn(lessons []Lesson, wait bool) error {
	held, err := d.lockMembers(lessons, wait)
	defer held.unlock()
	if err != nil {
		return err
	}
	now, err := BootClock()
	if err != nil {
		return err
	}
	if d.holds(held, lessons, now) {
		return nil
	}
	changes, err := d.teach(held, lessons, now)
	if errors.Is(err, ErrFull) && d.makeRoom(held, now) {
		changes, err = d.teach(held, lessons, now)
	}
	if err != nil {
		return err
	}
	var edits, addrs []edit
	for _, c := range changes {
		all := c.edits(&d.bpf.bpfMaps)
		names := len(c.names)
		edits, addrs = append(edits, all[:names]...), append(addrs, all[names:]...)
	}
	if err := apply(append(edits, addrs...)); err != nil {
		return fmt.Errorf("learn %s: %w", lessons[0].Name, err)
	}
	for _, c := range changes {
		c.commit(&d.room)
	}
	if len(changes) == 0 {
		return nil
	}
	for _, a := range held {
		if err := d.countLesson(a); err != nil {
			return fmt.Errorf("learn %s: %w", lessons[0].Name, err)
		}
	}
	return nil
}

// holds reports whether all that the lessons teach is in the kernel, for as long
// as they say but for a little of the grace.
func (d *Datapath) holds(held members, lessons []Lesson, now time.Duration) bool {
	for i := range lessons {
		l := &lessons[i]
		until := now + max(l.TTL, 0) + d.limits.grace - min(refreshInterval, d.limits.grace/8)
		if len(l.Addrs) > 0 && !held.at(l.Member.Index).memory.has(l, now-d.limits.nameAge, until) {
			return false
		}
	}
	return true
}

// has reports whether a name was learned since, and all its addresses until some time.
func (m *memory) has(l *Lesson, since, until time.Duration) bool {
	id, known := m.ids[nameKey{text: l.Name, grant: l.Grant.Key(), proxy: l.Grant.Proxy}]
	if n := m.names[id]; !known || n.cut != 0 || n.learned <= since {
		return false
	}
	places := grantPlaces(l.Grant)
	for _, addr := range l.Addrs {
		gs := m.addrs[canonicalAddr(addr)]
		for _, p := range places {
			if !slices.ContainsFunc(gs, func(g grant) bool {
				return g.name == id && g.first == p.first && g.last == p.last && g.match == p.match && g.deadline >= until
			}) {
				return false
			}
		}
	}
	return true
}

// countLesson has the programs look anew at what they have not found before. It
// comes after the entries, so that who has not seen them will look again. The
// caller holds a.mu.
func (d *Datapath) countLesson(a *attachment) error {
	next := a.lessons + 1
	if uint32(next) == 0 {
		next++ // stands for nothing
	}
	if err := d.setLessons(a, next); err != nil {
		return err
	}
	a.lessons = next
	return nil
}

// setLessons writes the count by one store to the map's memory, without a system call.
func (d *Datapath) setLessons(a *attachment, n uint64) error {
	var b [8]byte
	binary.NativeEndian.PutUint64(b[:], n)
	if _, err := d.lessons.WriteAt(b[:], int64(a.index)*int64(len(b))); err != nil {
		return fmt.Errorf("lessons: %w", err)
	}
	return nil
}

// members are the locked attachments of lessons, in the order of their indices.
// There are few, as cgroups are not nested deeply.
type members []*attachment

func (m members) unlock() {
	for _, a := range m {
		a.mu.Unlock()
	}
}

func (m members) at(index uint32) *attachment {
	for _, a := range m {
		if a.index == index {
			return a
		}
	}
	return nil
}

// lockMembers locks the attachments of the lessons, in the order of their
// indices, and checks that the policies are those that the lessons come from. It
// returns what it has locked, also with an error.
func (d *Datapath) lockMembers(lessons []Lesson, wait bool) (held members, err error) {
	ordered := lessons
	if len(lessons) > 1 {
		ordered = slices.Clone(lessons)
		slices.SortStableFunc(ordered, func(a, b Lesson) int { return cmp.Compare(a.Member.Index, b.Member.Index) })
	}
	for i := range ordered {
		l := &ordered[i]
		a := held.at(l.Member.Index)
		if a == nil {
			if a = d.at(l.Member.Index); a == nil {
				return held, fmt.Errorf("learn %s for %s: %w", l.Name, l.Member.ID, ErrStale)
			}
			if !a.mu.TryLock() {
				if !wait {
					return held, ErrBusy
				}
				a.mu.Lock()
			}
			held = append(held, a)
		}
		now := a.member.Load()
		if now == nil || now.incarnation != l.Member.incarnation || now.version != l.Member.version {
			return held, fmt.Errorf("learn %s for %s: %w", l.Name, l.Member.ID, ErrStale)
		}
	}
	return held, nil
}

// teach works out what the lessons change.
func (d *Datapath) teach(held members, lessons []Lesson, now time.Duration) ([]*change, error) {
	limits := d.limits
	limits.freeNames = int(d.bpf.NfNames.MaxEntries()) - int(d.room.names.Load())
	limits.freeChunks = int(d.bpf.NfLearned.MaxEntries()) - int(d.room.chunks.Load())
	var changes []*change
	for _, l := range lessons {
		if len(l.Addrs) == 0 {
			continue
		}
		a := held.at(l.Member.Index)
		at := slices.IndexFunc(changes, func(c *change) bool { return c.memory == &a.memory })
		if at < 0 {
			at = len(changes)
			changes = append(changes, a.memory.change(a.record.Incarnation))
		}
		if err := changes[at].teach(l, now, limits); err != nil {
			return nil, fmt.Errorf("learn %s for %s: %w", l.Name, l.Member.ID, err)
		}
	}
	return changes, nil
}

func (c *change) teach(l Lesson, now time.Duration, limits learningLimits) error {
	if l.Name == "" || len(l.Name) > maxName {
		return fmt.Errorf("name of %d bytes", len(l.Name))
	}
	id, err := c.name(l, now, limits)
	if err != nil {
		return err
	}
	deadline := now + max(l.TTL, 0) + limits.grace
	known := c.addrCount()
	for _, addr := range l.Addrs {
		if !addr.IsValid() {
			return errors.New("invalid address")
		}
		addr = canonicalAddr(addr)
		gs := c.grants(addr)
		if len(gs) == 0 {
			if known++; known > limits.addrs {
				return &LimitError{Attachment: l.Member.ID, Limit: "learned", Max: limits.addrs}
			}
		}
		before := len(gs)
		for _, g := range grantPlaces(l.Grant) {
			g.name, g.deadline = id, deadline
			gs = gs.set(g)
		}
		if len(gs) > maxGrants {
			return fmt.Errorf("%w: %s: at most %d grants for one address, one for each name and port range", ErrFull, addr, maxGrants)
		}
		if more := (len(gs) - before) / grantsPerChunk; more > 0 {
			if err := leaves("grants of learned addresses", c.memory.chunks+c.grown, limits.freeChunks); err != nil {
				return err
			}
			c.grown += more
		}
		c.addrs[addr] = gs
	}
	return nil
}

// leaves refuses more of what all share to an attachment that has as many as are left for all.
func leaves(what string, used, free int) error {
	if used >= free {
		return fmt.Errorf("%w: %s: %d in use by this attachment, and no more are left for all", ErrFull, what, used)
	}
	return nil
}

// name finds the lesson's name or gives it an id.
func (c *change) name(l Lesson, now time.Duration, limits learningLimits) (uint32, error) {
	n := knownName{nameKey: nameKey{text: l.Name, grant: l.Grant.Key(), proxy: l.Grant.Proxy}, learned: now}
	for id, other := range c.names {
		if other.nameKey == n.nameKey {
			return id, nil
		}
	}
	id, known := c.memory.ids[n.nameKey]
	// One that is cut, be it at a generation not reached, is not taken up again.
	known = known && c.memory.names[id].cut == 0
	if !known {
		used := c.nameCount()
		if used >= limits.names {
			return 0, &LimitError{Attachment: l.Member.ID, Limit: "names", Max: limits.names}
		}
		if err := leaves("names", used, limits.freeNames); err != nil {
			return 0, err
		}
		id = c.memory.last + 1 + uint32(c.nameCount()-len(c.memory.names))
		if id <= c.memory.last {
			return 0, fmt.Errorf("%w: name ids are used up (detach, and attach again)", ErrFull)
		}
	}
	if known && now < c.memory.names[id].learned+limits.nameAge {
		return id, nil
	}
	c.names[id] = n
	return id, nil
}

func (c *change) nameCount() int {
	n := len(c.memory.names)
	for id := range c.names {
		if _, ok := c.memory.names[id]; !ok {
			n++
		}
	}
	return n
}

func (c *change) addrCount() int {
	n := len(c.memory.addrs)
	for addr := range c.addrs {
		if _, ok := c.memory.addrs[addr]; !ok {
			n++
		}
	}
	return n
}
