// SPDX-License-Identifier: Apache-2.0

// Package intercept opens the sockets to which the kernel brings the DNS queries
// of attachments, whomever those were addressed to.
package intercept

import (
	"errors"
	"io"

	"github.com/netfence/netfence/internal/datapath"
	"github.com/netfence/netfence/internal/dnsproxy"
)

// Kernel is told where the sockets are; *datapath.Datapath is one.
type Kernel interface {
	ListenCgroups(datapath.DNSListener) error
	ListenInterfaces(ifindex int) (io.Closer, error)
}

// Front is a set of sockets. They end with the process, and what makes queries
// come to them ends with them.
type Front struct {
	Packets []dnsproxy.PacketConn
	Streams []dnsproxy.Listener

	closers []io.Closer // the last one first
}

// OpenCgroups opens the sockets for the queries of cgroups, and for those that
// the host sends to an attachment's DNS address. On a machine without IPv6 they
// are for IPv4.
func OpenCgroups(k Kernel) (*Front, error) {
	return nil, errors.New("DNS for cgroups: not there yet")
}

// OpenInterfaces opens the sockets for the queries of interfaces, in a network
// namespace of their own.
func OpenInterfaces(k Kernel) (*Front, error) {
	return nil, errors.New("DNS for interfaces: not there yet")
}

// Close ends the front. From its first step on queries are refused.
func (f *Front) Close() error {
	var errs []error
	for i := len(f.closers) - 1; i >= 0; i-- {
		errs = append(errs, f.closers[i].Close())
	}
	return errors.Join(errs...)
}

// Remove takes away what a killed process has left: the route to the IPv6 DNS
// addresses.
func Remove() error { return nil }
