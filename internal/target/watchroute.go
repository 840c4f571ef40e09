// SPDX-License-Identifier: Apache-2.0

package target

import (
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// readRoutes notes that default routes change, until the socket is closed.
func (w *Watcher) readRoutes() error {
	return w.read(w.routes, w.routeMessages, w.reroute)
}

// routeMessages looks for default routes among what may be many others.
func (w *Watcher) routeMessages(buf []byte) error {
	messages, err := syscall.ParseNetlinkMessage(buf)
	if err != nil {
		return err
	}
	for _, m := range messages {
		if m.Header.Type != unix.RTM_NEWROUTE && m.Header.Type != unix.RTM_DELROUTE {
			continue
		}
		if len(m.Data) < unix.SizeofRtMsg {
			return fmt.Errorf("%d bytes of a route, want at least %d", len(m.Data), unix.SizeofRtMsg)
		}
		if m.Data[1] <= 1 { // rtmsg.rtm_dst_len; as in isDefault
			w.reroute()
		}
	}
	return nil
}

func (w *Watcher) reroute() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rerouted = true
}

// lookAtRoutes reports the interfaces whose direction followed from their kind,
// and by which a default route leaves now.
func (w *Watcher) lookAtRoutes() {
	w.mu.Lock()
	due := w.rerouted && len(w.indexes) > 0
	if due {
		w.rerouted = false // what comes during the look is looked at again
	}
	w.mu.Unlock()
	if !due {
		return
	}
	leave, err := uplinks(w.look)
	if err != nil { // interrupted by a change, as a rule
		w.log.Debug("default routes could not be looked at, trying again", "err", err)
		w.reroute()
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for index, k := range w.indexes {
		e := w.watched[k]
		if e == nil || e.target.Directed || e.target.Direction != Ingress {
			continue
		}
		if leave[index] && !e.uplink {
			if _, ok := w.pending[k]; ok { // its rename is told first
				w.rerouted = true
				continue
			}
			w.report(k, Event{Doubtful, e.target})
		}
		e.uplink = leave[index]
	}
}
