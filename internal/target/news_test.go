// SPDX-License-Identifier: Apache-2.0

package target

import (
	"errors"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/testenv"
)

// narrow has a socket hold no more than two or three messages.
func narrow(t *testing.T, n *News) {
	t.Helper()
	control(n.file, func(fd int) {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1); err != nil {
			t.Error(err)
		}
	})
}

// That news were lost is said after all that were, also those that the kernel drops when it has said so already.
func TestLostNews(t *testing.T) {
	testenv.Require(t, testenv.Root)
	host := testenv.NewNS(t)
	var n *News
	host.Do(func() {
		var err error
		if n, err = OpenNews(unix.RTMGRP_LINK); err != nil {
			t.Fatal(err)
		}
	})
	defer n.Close()
	narrow(t, n)
	mtu := 9000
	change := func() {
		mtu++
		edit(t, host, "lo", func(link netlink.Link) error { return netlink.LinkSetMTU(link, mtu) })
	}
	b := make([]byte, 64<<10)
	for range 3 {
		told := 0
		for range 20 {
			change()
		}
		for { // whoever reads, more changes all the time until all is read
			_, err := n.Read(b)
			if errors.Is(err, unix.ENOBUFS) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if told++; told == 1 {
				change() // is not told of: the kernel drops it without another word
			}
		}
		if told == 0 || told > 10 {
			t.Errorf("%d messages before what was lost is told of", told)
		}
	}
	change()
	if size, err := n.Read(b); size == 0 || err != nil {
		t.Errorf("after that: %d bytes, %v", size, err)
	}
}
