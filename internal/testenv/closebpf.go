// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"io"
	"runtime"
)

// CloseBPF closes a program, map or link of cilium/ebpf, whose Close does not keep it reachable while it ends the
// cleanup (v0.22): collected at that moment, it closes a file descriptor that may be somebody else's by then.
func CloseBPF(c io.Closer) error {
	err := c.Close()
	runtime.KeepAlive(c)
	return err
}
