// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"fmt"
	"sync"
	"syscall"

	"github.com/cilium/ebpf"
)

// endFlows ends the reply flows of an attachment, or of all for index 0, that
// have expired or that the policy in force does not permit. The kernel itself
// judges each: no rule is read twice.
func (d *Datapath) endFlows(index uint32) error {
	if index != 0 {
		var flows uint64
		if err := d.bpf.NfFlowCounts.Lookup(index, &flows); err != nil {
			return fmt.Errorf("end reply flows: %w", err)
		}
		if flows == 0 {
			return nil
		}
	}
	return d.walks.join(index, func(index uint32) error {
		query := bpfFlowsQuery{Attachment: index}
		if _, err := d.bpf.NfFlowsEnd.Run(&ebpf.RunOptions{Context: &query}); err != nil {
			return fmt.Errorf("end reply flows: %w", err)
		}
		return nil
	})
}

// walks goes over nf_flows one at a time: that takes some 20 ms of a processor, for
// one attachment as for all. Whoever asks meanwhile shares the next one, so that a
// policy that many attachments get does not take a walk for each.
type walks struct {
	mu    sync.Mutex // guards both
	going *walk      // has begun, and may be done; nil: none has
	next  *walk      // waits for that
}

type walk struct {
	index uint32 // 0: of all
	done  chan struct{}
	err   error // set before done is closed
}

// join returns when a walk that began after the call is done.
func (w *walks) join(index uint32, run func(index uint32) error) error {
	w.mu.Lock()
	if next := w.next; next != nil {
		if next.index != index {
			next.index = 0
		}
		w.mu.Unlock()
		<-next.done
		return next.err
	}
	mine := &walk{index: index, done: make(chan struct{})}
	w.next = mine
	before := w.going
	w.mu.Unlock()

	if before != nil {
		<-before.done
	}
	w.mu.Lock()
	w.going, w.next = mine, nil // from here on it is too late to join
	w.mu.Unlock()
	mine.err = run(mine.index)
	close(mine.done)
	return mine.err
}

// Exempt lets a socket of the daemon itself through the filter of a device that
// it shares with a workload (egress direction). The mark is the kernel's and
// ends with the socket; no workload can set it.
func (d *Datapath) Exempt(socket syscall.RawConn) error {
	var err error
	if cerr := socket.Control(func(fd uintptr) { err = d.bpf.NfExempt.Put(int32(fd), uint32(1)) }); cerr != nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("exempt socket: %w", err)
	}
	return nil
}
