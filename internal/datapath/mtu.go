// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// MTU is what a packet may be to leave by the device of the attachment at index; 0: it is no interface's. It is asked of
// the kernel each time (netdevice(7)), for who sets it tells nobody here.
func (d *Datapath) MTU(index uint32) (mtu int, err error) {
	a := d.at(index)
	if a == nil || !isInterface(a.record) {
		return 0, nil
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq("")
	if err != nil {
		return 0, err
	}
	request.SetUint32(a.record.Ifindex)
	for _, question := range []struct {
		request uint
		name    string
	}{{unix.SIOCGIFNAME, "SIOCGIFNAME"}, {unix.SIOCGIFMTU, "SIOCGIFMTU"}} {
		if err := unix.IoctlIfreq(fd, question.request, request); err != nil {
			return 0, fmt.Errorf("MTU of interface %d: %w", a.record.Ifindex, os.NewSyscallError(question.name, err))
		}
	}
	return int(request.Uint32()), nil
}
