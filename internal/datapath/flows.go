// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"fmt"
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
	query := bpfFlowsQuery{Attachment: index}
	if _, err := d.bpf.NfFlowsEnd.Run(&ebpf.RunOptions{Context: &query}); err != nil {
		return fmt.Errorf("end reply flows: %w", err)
	}
	return nil
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
