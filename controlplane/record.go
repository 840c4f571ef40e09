// SPDX-License-Identifier: Apache-2.0

package controlplane

// attachment is what is known of one. It is guarded by its daemon's mu, and kept small: there are many.
type attachment struct {
	text             string // id, target and DNS address, one after the other
	idLen, targetLen uint16
	kind             TargetType
	labels           labels

	pending bool // no policy yet
	absent  bool // not told of since its daemon came back
	gone    bool
	decided bool
	due     bool // in daemon.fresh or daemon.due
	queued  bool // in daemon.unsent
	refused bool // sent was
	status  Status
	moves   bool
	alone   bool   // the daemon did not have the named policy: send the policy itself
	again   bool   // what was sent was superseded, and is sent a second time
	cost    uint32 // of the command whose result tells of want

	want    *document       // decided last; nil: nothing
	sent    string          // revision of what was sent last, or is in force; empty: not known
	inForce string          // as far as the daemon told
	named   *namedPolicy    // that it is under or, when it moves, on its way to
	perhaps *[]*namedPolicy // that it may be under, too; nil: none, as nearly always
	number  uint64          // of the command whose result tells of want; 0: none is under way

	asked   uint64 // ControlPlane.sequence when it was decided last
	settled uint64 // and of the decision that status is about
	err     string // last refusal, or why it is undecided
	stats   counters
}

func (a *attachment) id() string { return a.text[:a.idLen] }

func (a *attachment) target() string { return a.text[a.idLen:][:a.targetLen] }

func (a *attachment) dnsAddress() string { return a.text[a.idLen+a.targetLen:] }

// maybe are the named policies that it may be under, too.
func (a *attachment) maybe() []*namedPolicy {
	if a.perhaps == nil {
		return nil
	}
	return *a.perhaps
}

type counters struct{ packetsAllowed, packetsBlocked, queriesAllowed, queriesBlocked uint64 }

func (a *attachment) statistics() Stats {
	return Stats{
		ID: a.id(), PacketsAllowed: a.stats.packetsAllowed, PacketsBlocked: a.stats.packetsBlocked,
		DNSQueriesAllowed: a.stats.queriesAllowed, DNSQueriesBlocked: a.stats.queriesBlocked,
	}
}

// state is the status as of now: one that is about an older decision says nothing of the newer.
func (a *attachment) state(d *daemon) Status {
	switch {
	case a.gone:
		return Gone
	case d.stream == nil || a.absent:
		return Disconnected
	case a.due || a.settled < a.asked:
		return Waiting
	default:
		return a.status
	}
}

// size is about what it takes of memory.
func (a *attachment) size() int {
	return 512 + len(a.text) + a.labels.size()
}
