// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"slices"
	"strconv"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
)

// named are the policies that a daemon holds by name. Who uses one is not the user's to say: attachments of one daemon
// that are to have the same share one, and while they all go on to the same, it is sent once, whatever their number.
type named struct {
	byName     map[string]*namedPolicy
	byRevision map[string]*namedPolicy
	wanted     map[*document]int       // attachments of the daemon by what they are to have
	last       int                     // of the names given
	empty      []*namedPolicy          // perhaps without users
	underway   map[uint64]*namedPolicy // by the number of the command that puts it
}

// namedPolicy is one of them.
type namedPolicy struct {
	name     string
	revision string            // of what was put last
	held     string            // of what the daemon is known to hold
	users    int               // attachments under it, or perhaps
	wanted   map[*document]int // by what they are to have
	puts     map[uint64]put    // under way, by number
	latest   uint64            // number of the last put
	heldBy   uint64            // number of the put that held is of
	listed   bool              // in named.empty
}

type put struct {
	revision string
	cost     int
}

// reset takes over what the daemon holds.
func (n *named) reset(refs []*netfencev1.PolicyRef) {
	*n = named{last: n.last, wanted: n.wanted}
	for _, ref := range refs {
		if _, ok := n.byName[ref.GetName()]; !ok {
			n.vacant(n.add(ref.GetName(), ref.GetRevision()))
		}
	}
}

func (n *named) add(name, revision string) *namedPolicy {
	if n.byName == nil {
		n.byName, n.byRevision = make(map[string]*namedPolicy), make(map[string]*namedPolicy)
		n.underway = make(map[uint64]*namedPolicy)
	}
	p := &namedPolicy{name: name, revision: revision, held: revision, puts: make(map[uint64]put)}
	n.byName[name] = p
	n.byRevision[revision] = p
	return p
}

// make gives a name that the daemon does not have.
func (n *named) make() *namedPolicy {
	for {
		n.last++
		name := "shared-" + strconv.Itoa(n.last)
		if _, taken := n.byName[name]; !taken {
			return n.add(name, "")
		}
	}
}

// moving finds the one whose attachments are all to have want next; nil: none.
func (n *named) moving(want *document) *namedPolicy {
	for _, p := range n.byName {
		if p.users > 1 && p.wanted[want] == p.users {
			return p
		}
	}
	return nil
}

// revise notes another content.
func (n *named) revise(p *namedPolicy, revision string) {
	if n.byRevision[p.revision] == p {
		delete(n.byRevision, p.revision)
	}
	p.revision = revision
	n.byRevision[revision] = p
}

// remove forgets a policy that the daemon is told to delete.
func (n *named) remove(p *namedPolicy) {
	delete(n.byName, p.name)
	if n.byRevision[p.revision] == p {
		delete(n.byRevision, p.revision)
	}
}

// join has a be under p, and nothing else, as the daemon told; nil: under a policy of its own.
func (n *named) join(a *attachment, p *namedPolicy) {
	n.leave(a)
	if a.named = p; p != nil {
		p.users++
		p.count(a.want, 1)
	}
}

// move has a be on its way to p; nil: to a policy of its own. Until the daemon has answered, it may be under what it was
// under before, too.
func (n *named) move(a *attachment, p *namedPolicy) {
	n.doubt(a)
	if a.named, a.moves = p, true; p != nil {
		p.users++
		p.count(a.want, 1)
	}
}

// moved notes what became of it. Where the daemon refused, a is where it was before; as another answer may have been lost,
// it counts as being perhaps in any of them, which another command to a ends.
func (n *named) moved(a *attachment, applied bool) {
	if !applied {
		n.doubt(a)
	}
	a.moves = false
	if applied {
		n.drop(a)
	}
}

// leave ends all that a is or may be under.
func (n *named) leave(a *attachment) {
	n.doubt(a)
	a.moves = false
	n.drop(a)
}

// doubt has a be only perhaps under what it is under. It is noted once: a daemon that answers nothing may be sent any
// number of moves.
func (n *named) doubt(a *attachment) {
	p := a.named
	a.named = nil
	switch {
	case p == nil:
	case slices.Contains(a.maybe(), p):
		p.users--
		p.count(a.want, -1)
	default:
		list := append(a.maybe(), p)
		a.perhaps = &list
	}
}

// vacant notes that p may have no users left.
func (n *named) vacant(p *namedPolicy) {
	if !p.listed {
		p.listed = true
		n.empty = append(n.empty, p)
	}
}

// drop ends what a only may be under.
func (n *named) drop(a *attachment) {
	for _, p := range a.maybe() {
		p.users--
		p.count(a.want, -1)
		if p.users == 0 {
			n.vacant(p)
		}
	}
	a.perhaps = nil
}

func (p *namedPolicy) count(want *document, by int) { count(&p.wanted, want, by) }

func count(m *map[*document]int, want *document, by int) {
	if want == nil {
		return
	}
	if *m == nil {
		*m = make(map[*document]int)
	}
	if (*m)[want] += by; (*m)[want] == 0 {
		delete(*m, want)
	}
}

// wants notes what an attachment is to have.
func (d *daemon) wants(a *attachment, want *document) {
	if a.want == want {
		return
	}
	count(&d.named.wanted, a.want, -1)
	count(&d.named.wanted, want, 1)
	for _, p := range a.maybe() {
		p.count(a.want, -1)
		p.count(want, 1)
	}
	if p := a.named; p != nil {
		p.count(a.want, -1)
		p.count(want, 1)
	}
	a.want, a.alone, a.again = want, false, false
}
