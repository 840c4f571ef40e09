// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"fmt"

	"github.com/netfence/netfence/internal/controlclient"
	"github.com/netfence/netfence/internal/datapath"
	"github.com/netfence/netfence/internal/dnsproxy"
	"github.com/netfence/netfence/internal/localapi"
	"github.com/netfence/netfence/internal/target"
	"github.com/netfence/netfence/policy"
)

// resolver finds targets in the network namespace that the daemon was started in.
type resolver struct{}

func (resolver) Interface(name string, direction target.Direction, netns string) (target.Target, error) {
	return target.ResolveInterface(name, direction, netns)
}

func (resolver) Cgroup(path string) (target.Target, error) { return target.ResolveCgroup(path) }

func (resolver) PID(pid int) (target.Target, error) { return target.ResolvePID(pid) }

// filter is the kernel as the reconciler drives it.
type filter struct {
	*datapath.Datapath
	dns    *dns
	leased func(id string) bool
}

// Replace puts in force what the control plane has given for as long as the lease is, if there is to be one.
func (f filter) Replace(id string, c *policy.Compiled) error {
	if f.leased(id) {
		return f.ReplaceLeased(id, c)
	}
	return f.Datapath.Replace(id, c)
}

// Detach also ends what the DNS server counts of the attachment, and sockets that were opened for it.
func (f filter) Detach(id string) error {
	index, ok := f.Index(id)
	err := f.Datapath.Detach(id)
	if err == nil {
		f.dns.server.Forget(id)
	}
	if err == nil && ok {
		f.dns.elsewhere.Forget(index)
	}
	return err
}

// counters are the kernel's and the DNS server's in the words of the local API.
func (d *daemon) counters(id string) (localapi.Counters, bool) {
	c, ok := d.read(id)
	return inWords(c, d.dns.server.Counts(id)), ok
}

func inWords(c datapath.Counters, queries dnsproxy.Counts) localapi.Counters {
	return localapi.Counters{
		PacketsAllowed: c.PacketsAllowed, PacketsBlocked: c.PacketsDropped,
		Drops: c.Drops, WouldDeny: c.WouldDeny, FlowsUnnoted: c.FlowsUnnoted,
		DNSQueriesAllowed: queries.Allowed, DNSQueriesBlocked: queries.Blocked, DNSQueriesWouldDeny: queries.WouldDeny,
	}
}

// totals are the sums over the attachments that there are.
func (d *daemon) totals() (localapi.Counters, error) {
	census, err := d.kernel.Census()
	if err != nil {
		return localapi.Counters{}, err
	}
	var queries dnsproxy.Counts
	for id := range census.Counters {
		queries.Add(d.dns.server.Counts(id))
	}
	return inWords(census.Sum(), queries), nil
}

// heartbeat is the same in the words of the control client.
func (d *daemon) heartbeat(id string) (controlclient.Stats, bool) {
	c, ok := d.counters(id)
	return controlclient.Stats{
		PacketsAllowed: c.PacketsAllowed, PacketsBlocked: c.PacketsBlocked,
		DNSQueriesAllowed: c.DNSQueriesAllowed, DNSQueriesBlocked: c.DNSQueriesBlocked,
	}, ok
}

func (d *daemon) nameservers(id string) (address string, servers []string) {
	for _, addr := range d.kernel.Nameservers(id) {
		servers = append(servers, addr.String())
	}
	return d.kernel.DNSAddress(id), servers
}

func (d *daemon) learned(id string) []localapi.Learned {
	var list []localapi.Learned
	for _, l := range d.kernel.Learned(id) {
		list = append(list, localapi.Learned{Addr: l.Addr, Names: l.Names, Ports: l.Ports, Remaining: l.Remaining})
	}
	return list
}

// inherit has an attachment learn what another holds.
func (d *daemon) inherit(ctx context.Context, from, to string) error {
	held, err := d.kernel.Held(from)
	if err != nil {
		return err
	}
	index, ok := d.kernel.Index(to)
	if !ok {
		return datapath.ErrNotAttached
	}
	return d.dns.server.Inherit(ctx, index, held)
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
