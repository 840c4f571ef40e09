// SPDX-License-Identifier: Apache-2.0

// Package intercept opens the sockets to which the kernel brings the DNS queries
// of attachments, whomever those were addressed to.
package intercept

import (
	"errors"
	"io"
	"net"

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

	// Of a front for cgroups: what others like it need.
	port   uint16
	filter *datapath.DNSFilter
}

func (f *Front) add(c io.Closer) { f.closers = append(f.closers, c) }

type closerFunc func() error

func (f closerFunc) Close() error { return f() }

// Close ends the front, from the last thing opened to the first: queries are
// refused before the sockets go. What a server has closed is closed.
func (f *Front) Close() error {
	var errs []error
	for i := len(f.closers) - 1; i >= 0; i-- {
		if err := f.closers[i].Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	f.closers = nil
	return errors.Join(errs...)
}
