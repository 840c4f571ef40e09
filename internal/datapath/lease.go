// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"fmt"
	"time"

	"github.com/netfence/netfence/policy"
)

// ReplaceLeased is Replace of a policy that is in force until the lease is over: from then on the attachment is as if it
// had none yet, closed to what the guard allows too, until the lease is renewed.
func (d *Datapath) ReplaceLeased(id string, c *policy.Compiled) error {
	return d.replace(id, c, uint64(bpfWordFlagWORD_LEASED))
}

// Lease returns when the lease of all leased policies is over, since boot; 0: never. It is kept in the kernel, over the
// daemon's life too.
func (d *Datapath) Lease() time.Duration { return time.Duration(d.lease.Load()) }

// SetLease sets when the lease is over, since boot, suspend included; 0: never.
func (d *Datapath) SetLease(end time.Duration) error {
	if err := d.bpf.NfMeta.Put(uint32(bpfLimitMETA_LEASE), uint64(end)); err != nil {
		return fmt.Errorf("lease: %w", err)
	}
	d.lease.Store(int64(end))
	return nil
}

// leaseIsOver is for queries, which the programs hand over in block-all, too.
func (d *Datapath) leaseIsOver() bool {
	end := d.Lease()
	if end == 0 {
		return false
	}
	now, err := BootClock()
	return err != nil || now >= end
}

func (d *Datapath) loadLease() error {
	var end uint64
	if err := d.bpf.NfMeta.Lookup(uint32(bpfLimitMETA_LEASE), &end); err != nil {
		return fmt.Errorf("lease: %w", err)
	}
	d.lease.Store(int64(end))
	return nil
}
