// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"net/netip"
	"sync"

	"github.com/netfence/netfence/internal/datagram"
)

// outgoing are the queries that wait to be sent. Whoever has servers asked
// flushes them when it has no more to ask at once: each socket has its own by as
// few system calls as can be.
type outgoing struct {
	mu    sync.Mutex
	tries []*try
}

func (o *outgoing) add(t *try) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.tries = append(o.tries, t)
}

// take moves what waits to tries, in its order.
func (o *outgoing) take(tries []*try) []*try {
	o.mu.Lock()
	defer o.mu.Unlock()
	tries = append(tries, o.tries...)
	clear(o.tries)
	o.tries = o.tries[:0]
	return tries
}

// queriesSent is how many are sent at once, each of at most sentBytes: a header, a name, a type, a class, OPT.
const (
	queriesSent = 16
	sentBytes   = headerBytes + maxWireName + 4 + 11
)

var sendBatches = sync.Pool{New: func() any { return datagram.New(queriesSent, sentBytes, 0, false) }}

// flush sends the queries that wait.
func (u *upstream) flush() {
	var room [2 * turn]*try
	for {
		// A query that cannot be sent has another server asked.
		tries := u.out.take(room[:0])
		if len(tries) == 0 {
			return
		}
		u.send(tries)
	}
}

func (u *upstream) send(tries []*try) {
	b := sendBatches.Get().(*datagram.Batch)
	defer sendBatches.Put(b)
	var batch [queriesSent]*try
	for i, t := range tries {
		if t == nil {
			continue
		}
		k := t.socket
		n := 0
		for j := i; j < len(tries) && n < queriesSent; j++ { // and with it all others of the socket
			if other := tries[j]; other != nil && other.socket == k && b.Add(other.sent, netip.AddrPort{}, nil) {
				batch[n], tries[j] = other, nil
				n++
			}
		}
		b.Send(k.conn, func(i int, err error) { batch[i].unsent(systemError(err)) })
	}
}

// unsent takes that a query could not be sent.
func (t *try) unsent(err error) {
	t.socket.forget(t)
	t.quest.failed(t, err)
}
