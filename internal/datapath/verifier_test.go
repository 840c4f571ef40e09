// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"testing"

	"github.com/cilium/ebpf"
)

// A daemon's start waits for the verifier, which walks what is inlined once for each way that leads there: a branch in the
// wrong place has doubled that more than once. A function that is not inlined is walked once for each program.
func TestVerifierHasLittleToWalk(t *testing.T) {
	const most = 40_000 // instructions of a program; 20,000 on Linux 6.18
	d := open(t, pinDir(t))
	for _, p := range fields[ebpf.Program](&d.bpf.bpfPrograms) {
		info, err := (*p).Info()
		if err != nil {
			t.Fatal(err)
		}
		if n, ok := info.VerifiedInstructions(); !ok || n == 0 || n > most {
			t.Errorf("%s: the verifier walks %d instructions, want at most %d", info.Name, n, most)
		}
	}
}
