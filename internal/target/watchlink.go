// SPDX-License-Identifier: Apache-2.0

package target

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// readLinks handles link messages until the socket is closed.
func (w *Watcher) readLinks() error {
	return w.read(w.links, w.linkMessages, w.messagesLost)
}

// read hands on what is told until from is closed.
func (w *Watcher) read(from *News, handle func([]byte) error, lost func()) error {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		switch {
		case errors.Is(err, os.ErrClosed):
			return nil
		case errors.Is(err, unix.ENOBUFS):
			lost()
			continue
		case err != nil:
			return fmt.Errorf("watch interfaces: %w", err)
		}
		if err := handle(buf[:n]); err != nil { // perhaps cut off by the end of buf
			w.log.Warn("rtnetlink message could not be parsed", "err", err)
			lost()
		}
	}
}

func (w *Watcher) linkMessages(buf []byte) error {
	messages, err := syscall.ParseNetlinkMessage(buf)
	if err != nil {
		return err
	}
	for _, m := range messages {
		if len(m.Data) < unix.SizeofIfInfomsg {
			return fmt.Errorf("%d bytes, want at least %d", len(m.Data), unix.SizeofIfInfomsg)
		}
		info := nl.DeserializeIfInfomsg(m.Data)
		// AF_BRIDGE says that a port left its bridge, not that it was deleted.
		if info.Family != unix.AF_UNSPEC {
			continue
		}
		k, ok := w.interfaceAt(int(info.Index))
		if !ok {
			continue
		}
		switch m.Header.Type {
		case unix.RTM_DELLINK: // deleted, or moved to another namespace
			w.removed(k)
		case unix.RTM_NEWLINK:
			link, err := netlink.LinkDeserialize(nil, m.Data)
			if err != nil {
				return err
			}
			w.seen(describe(link, w.cookie))
		}
	}
	return nil
}

func (w *Watcher) interfaceAt(index int) (key, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	k, ok := w.indexes[index]
	return k, ok
}
