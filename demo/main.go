// SPDX-License-Identifier: Apache-2.0

// Demo plays Netfence's story on one machine without a network: `make demo`, as root.
//
// Everything is in network namespaces and a cgroup of its own. Each verdict is tried with real packets and said before
// it is known; the exit code is 0 only if every one came out as stated and nothing is left behind.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/test/harness"
)

func main() { testenv.Main(demo{}) }

// demo is what testenv.Main runs in a network namespace of its own, and after which it looks for what was left.
type demo struct{}

// Run returns the exit code.
func (demo) Run() int {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: demo NETFENCED")
		return 2
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "demo: needs root, for namespaces and BPF (sudo make demo)")
		return 1
	}
	netfenced, err := filepath.Abs(os.Args[1])
	if err == nil {
		err = os.Setenv(harness.BinaryEnv, netfenced)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		return 1
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	if !newStage(ctx).play(tell) {
		return 1
	}
	return 0
}
