// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"fmt"
	"time"

	"github.com/netfence/netfence/internal/controlclient"
	"github.com/netfence/netfence/internal/datapath"
	"github.com/netfence/netfence/internal/localapi"
)

// control_plane.on_disconnect: block is a lease of the control plane's policies, which the kernel ends by itself. While
// the control plane is connected it is renewed, and by nothing else: a daemon that starts finds it as it is.

// leased tells whether the policy of an attachment ends with the lease: it is the control plane's.
func (d *daemon) leased(id string) bool {
	if d.config.ControlPlane.BlockAfter == 0 {
		return false
	}
	a, _, err := d.store.Get(id)
	return err != nil || !a.OwnPolicy
}

// openLease begins the lease of a daemon that is the first to have one, or ends it where there is to be none.
func (d *daemon) openLease() error {
	after := d.config.ControlPlane.BlockAfter
	switch {
	case after == 0:
		return d.kernel.SetLease(0)
	case d.kernel.Lease() == 0:
		return d.extendLease()
	}
	return nil
}

func (d *daemon) extendLease() error {
	now, err := datapath.BootClock()
	if err != nil {
		return err
	}
	return d.kernel.SetLease(now + d.config.ControlPlane.BlockAfter)
}

// maxRenewal is the longest time between two renewals: as much less the lease may last than is configured.
const maxRenewal = 10 * time.Second

// renewLease renews the lease while the control plane is connected. A failure is tried again; the lease goes on to its end.
func (d *daemon) renewLease(ctx context.Context) error {
	ticker := time.NewTicker(min(d.config.ControlPlane.BlockAfter/10, maxRenewal))
	defer ticker.Stop()
	for {
		changed := d.control.client.Changed()
		if d.control.client.Status().State == controlclient.Connected {
			if err := d.extendLease(); err != nil {
				d.log.Error("lease of the control plane's policies not renewed", "err", err)
			}
		}
		select {
		case <-ticker.C:
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// reportLease says since when nothing of the control plane's attachments passes.
func (d *daemon) reportLease(s *localapi.Status) {
	if text := d.leaseEnd(); text != "" {
		s.Problems = append(s.Problems, "control plane lost: its attachments are "+text)
	}
}

// leaseOver is why nothing of an attachment's passes; empty: its policy decides.
func (d *daemon) leaseOver(id string) string {
	text := d.leaseEnd()
	if text == "" || !d.leased(id) {
		return ""
	}
	return "control plane lost: " + text
}

// leaseEnd is empty while the lease lasts.
func (d *daemon) leaseEnd() string {
	end := d.kernel.Lease()
	now, err := datapath.BootClock()
	if d.config.ControlPlane.BlockAfter == 0 || err == nil && now < end {
		return ""
	}
	return fmt.Sprintf("blocked since %v (control_plane.on_disconnect: block: %v)", (now - end).Round(time.Second), d.config.ControlPlane.BlockAfter)
}
