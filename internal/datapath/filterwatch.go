// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/target"
)

// anyDevice stands for messages that the kernel could not deliver.
const anyDevice = -1

// filterChanges tells, until ctx is done, the index of each device whose queueing
// disciplines or filters somebody has changed, in the network namespace at hand. The
// caller reads until it closes the channel.
func (d *Datapath) filterChanges(ctx context.Context) (<-chan int, error) {
	news, err := target.OpenNews(1 << (unix.RTNLGRP_TC - 1))
	if err != nil {
		return nil, fmt.Errorf("watch filters: %w", err)
	}
	context.AfterFunc(ctx, func() { _ = news.Close() }) // ends Read
	changes := make(chan int)
	go func() {
		defer close(changes)
		buffer := make([]byte, os.Getpagesize()*8)
		for {
			n, err := news.Read(buffer)
			var devices []int
			switch {
			case errors.Is(err, unix.ENOBUFS):
				devices = []int{anyDevice}
			case err != nil:
				if ctx.Err() == nil {
					d.log.Warn("filters are looked at in turn only", "err", err)
				}
				return
			default:
				devices = changedDevices(buffer[:n])
			}
			for _, ifindex := range devices {
				select {
				case changes <- ifindex:
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	return changes, nil
}

// changedDevices reads struct tcmsg (linux/rtnetlink.h) of each message.
func changedDevices(text []byte) []int {
	messages, err := syscall.ParseNetlinkMessage(text)
	if err != nil {
		return []int{anyDevice}
	}
	var devices []int
	for _, m := range messages {
		switch m.Header.Type {
		case unix.RTM_NEWQDISC, unix.RTM_DELQDISC, unix.RTM_NEWTFILTER, unix.RTM_DELTFILTER:
		default:
			continue
		}
		if len(m.Data) >= 8 {
			devices = append(devices, int(int32(binary.NativeEndian.Uint32(m.Data[4:]))))
		}
	}
	return devices
}

// lookAtDevice looks at the attachment of a device whose filters have changed, and at
// the device that DNS answers come by. netns is the cookie of the namespace at hand.
func (d *Datapath) lookAtDevice(netns uint64, ifindex int, vanished func(string, error)) {
	d.lookAtReturn(ifindex)
	if ifindex != anyDevice {
		var owner uint64
		if d.bpf.NfInterfaces.Lookup(&bpfInterfaceKey{Netns: netns, Ifindex: uint32(ifindex)}, &owner) == nil {
			d.lookAtFilter(d.at(uint32(owner)), vanished)
		}
		return
	}
	for i := range d.byIndex {
		d.lookAtFilter(d.byIndex[i].Load(), vanished)
	}
}

// lookAtFilter waits for who is at the attachment: there is no other turn before all
// others have had theirs.
func (d *Datapath) lookAtFilter(a *attachment, vanished func(string, error)) {
	if a == nil || !isInterface(a.record) {
		return
	}
	if _, ok := d.interfaceHolder(a.record).(clsact); ok {
		a.mu.Lock()
		d.lookLocked(a, 0, vanished)
	}
}

// lookAtReturn puts the way back of DNS answers back.
func (d *Datapath) lookAtReturn(ifindex int) {
	device := int(d.returns.Load())
	if device == 0 || ifindex != anyDevice && ifindex != device {
		return
	}
	p := dnsReturn(device)
	if handle, first, err := p.find(d.ours); err != nil || handle != 0 && first {
		return
	}
	if err := p.put(d.ours, d.bpf.NfDnsReturn); err != nil {
		d.log.Warn("way back of DNS answers was taken away, and is not back", "err", err)
		return
	}
	d.log.Error("not as it was left", "incident", incidentLost, "what", "the way back of DNS answers was taken away; it is back")
}
