// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"errors"
	"fmt"

	"github.com/netfence/netfence/internal/controlclient"
	"github.com/netfence/netfence/internal/datapath"
	"github.com/netfence/netfence/internal/localapi"
	"github.com/netfence/netfence/internal/target"
)

// resolver finds targets in the network namespace that the daemon was started in.
type resolver struct{}

func (resolver) Interface(name string, direction target.Direction, netns string) (target.Target, error) {
	return target.ResolveInterface(name, direction, netns)
}

func (resolver) Cgroup(path string) (target.Target, error) { return target.ResolveCgroup(path) }

func (resolver) PID(pid int) (target.Target, error) { return target.ResolvePID(pid) }

// counters are the kernel's in the words of the local API.
func (d *daemon) counters(id string) (localapi.Counters, bool) {
	c, ok := d.read(id)
	return localapi.Counters{PacketsAllowed: c.PacketsAllowed, PacketsBlocked: c.PacketsDropped, Drops: c.Drops}, ok
}

// heartbeat is the same in the words of the control client.
func (d *daemon) heartbeat(id string) (controlclient.Stats, bool) {
	c, ok := d.read(id)
	return controlclient.Stats{PacketsAllowed: c.PacketsAllowed, PacketsBlocked: c.PacketsDropped}, ok
}

// read logs what is no reason to fail a whole list or heartbeat.
func (d *daemon) read(id string) (datapath.Counters, bool) {
	c, err := d.kernel.Counters(id)
	if err != nil && !errors.Is(err, datapath.ErrNotAttached) {
		d.log.Warn("counters not read", "attachment", id, "err", err)
	}
	return c, err == nil
}

// reportOrphans adds what the kernel filters without the state knowing why.
func (d *daemon) reportOrphans(s *localapi.Status) {
	orphans, err := d.reconciler.Orphans()
	if err != nil {
		s.Problems = append(s.Problems, err.Error())
	}
	for _, id := range orphans {
		s.Problems = append(s.Problems, fmt.Sprintf("attachment %s is filtered as it was, but the state of it was lost "+
			"(end it with `netfenced detach --all`)", id))
	}
}
