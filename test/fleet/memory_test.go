// SPDX-License-Identifier: Apache-2.0

package fleet_test

import (
	"fmt"
	"os"
	"runtime/debug"
	"strings"
)

// memory is what the process holds now, garbage returned to the kernel, and the most that it held since the last call, both
// in KiB.
func memory() (now, peak int, err error) {
	if peak, err = statusKiB("VmHWM:"); err != nil {
		return 0, 0, err
	}
	debug.FreeOSMemory()
	if now, err = statusKiB("VmRSS:"); err != nil {
		return 0, 0, err
	}
	// Resets the peak (proc(5), clear_refs).
	return now, peak, os.WriteFile("/proc/self/clear_refs", []byte("5"), 0)
}

func statusKiB(name string) (int, error) {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			var kib int
			_, err := fmt.Sscan(rest, &kib)
			return kib, err
		}
	}
	return 0, fmt.Errorf("/proc/self/status has no %s", name)
}
