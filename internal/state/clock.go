// SPDX-License-Identifier: Apache-2.0

package state

import (
	"time"

	"golang.org/x/sys/unix"
)

// Clock tells when a change is made.
type Clock interface {
	Boot() time.Duration // since boot, on CLOCK_BOOTTIME: suspend counts
	Wall() time.Time
}

// SystemClock is the kernel's.
type SystemClock struct{}

// Boot reads CLOCK_BOOTTIME, the clock of bpf_ktime_get_boot_ns.
func (SystemClock) Boot() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("clock_gettime CLOCK_BOOTTIME: " + err.Error()) // there since Linux 2.6.39
	}
	return time.Duration(ts.Nano())
}

// Wall reads the time of day.
func (SystemClock) Wall() time.Time { return time.Now() }
