// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"io"
	"runtime"

	"github.com/cilium/ebpf"
)

// closeBPF closes programs, maps and links, and is the only way to. Their Close in cilium/ebpf v0.22
// ends the cleanup that would close the file descriptor too, but does not keep the object reachable
// meanwhile, as runtime.Cleanup.Stop demands: collected at that moment, it closes the number twice,
// and the second time it may be somebody else's.
func closeBPF(all ...io.Closer) error {
	var errs []error
	for _, c := range all {
		errs = append(errs, c.Close())
	}
	runtime.KeepAlive(all)
	return errors.Join(errs...)
}

// closeCollection is closeBPF for what is left in a collection.
func closeCollection(c *ebpf.Collection) {
	c.Close() //nolint:forbidigo // what it holds stays reachable
	runtime.KeepAlive(c)
}
