// SPDX-License-Identifier: Apache-2.0

package datapath

import "net/netip"

// namesOf is under which names the attachment has learned addr, the newest first.
func (d *Datapath) namesOf(identity uint64, addr netip.Addr) []string {
	return nil
}
