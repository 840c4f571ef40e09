// SPDX-License-Identifier: Apache-2.0

package fleet_test

import (
	"testing"

	"golang.org/x/sys/unix"
)

// raiseFiles makes room for a connection of each host, in this process and those that it starts.
func raiseFiles(b testing.TB) {
	b.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		b.Fatal(err)
	}
	limit.Cur = limit.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		b.Fatal(err)
	}
}
