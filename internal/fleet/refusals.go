// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"log/slog"
	"sync"
	"time"

	"github.com/netfence/netfence/controlplane"
)

const (
	// refusalsTold is how many refusals of one daemon are logged and recorded in a minute: whoever takes a host over could
	// fill the disk of the audit log with them, and then no change could be made. The API lists all that stand.
	refusalsTold   = 1000
	refusalsWindow = time.Minute
	// maxWindows are kept before those that are over are looked for.
	maxWindows = 4096
)

// refusals bounds what is told of each daemon.
type refusals struct {
	mu      sync.Mutex
	windows map[string]*window // by daemon
}

type window struct {
	begun time.Time
	n     int
}

// admit tells whether a refusal of a daemon is to be told, and how many of the time before were not.
func (r *refusals) admit(daemon string, now time.Time) (told bool, untold int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	w := r.windows[daemon]
	if w == nil {
		if len(r.windows) >= maxWindows {
			for id, old := range r.windows {
				if now.Sub(old.begun) >= refusalsWindow {
					delete(r.windows, id)
				}
			}
		}
		if r.windows == nil {
			r.windows = make(map[string]*window)
		}
		w = &window{begun: now}
		r.windows[daemon] = w
	}
	if now.Sub(w.begun) >= refusalsWindow {
		untold = max(0, w.n-refusalsTold)
		*w = window{begun: now}
	}
	w.n++
	return w.n <= refusalsTold, untold
}

// refused records what a daemon did not put in force.
func (a *api) refused(at controlplane.Attachment, r controlplane.Refusal) {
	a.counters.refusals.Inc()
	told, untold := a.refusals.admit(at.DaemonID, time.Now())
	if untold > 0 {
		a.log.Error("more policies refused than were told of", "daemon", at.DaemonID, "untold", untold)
		a.audit.note("refused", slog.String("daemon", at.DaemonID), slog.Int("untold", untold))
	}
	if !told {
		return
	}
	policy := a.source.Decides(at.Metadata)
	a.log.Error("policy refused; the attachment keeps what is in force", "daemon", at.DaemonID, "attachment", at.ID,
		"policy", policy, "reason", r.String())
	a.audit.note("refused", slog.String("policy", policy), slog.String("daemon", at.DaemonID),
		slog.String("attachment", at.ID), slog.String("reason", r.String()))
}
