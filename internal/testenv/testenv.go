// SPDX-License-Identifier: Apache-2.0

// Package testenv gives tests, and the demo, a kernel to themselves: network
// namespaces with devices between them, cgroups, a bpffs, processes inside those,
// packets sent and observed, and a check that nothing of it stays behind.
//
// A package that uses it calls Main from TestMain:
//
//	func TestMain(m *testing.M) { testenv.Main(m) }
//
// As root, Main runs the suite in a process of its own in a network namespace of
// its own, and compares the machine before and after. What is made on behalf of a
// test goes away with that test. iproute2's "ip netns exec" is never used: it
// mounts a new /sys and so hides the cgroup v2 hierarchy.
package testenv

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"sync/atomic"
	"time"
)

// TB is the part of testing.TB that this package needs, so that the demo can
// have an environment without the testing package.
type TB interface {
	Helper()
	Cleanup(func())
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
	Logf(format string, args ...any)
	Skipf(format string, args ...any)
	TempDir() string
	Context() context.Context
}

// Patience is how long Eventually and the like wait for what takes milliseconds on
// an idle machine; two busy cores, and a queue for a lock of the kernel, need more.
var Patience = 30 * time.Second * Slow

// Slow is how many times slower than usual the machine is, 1 unless the environment
// says otherwise: an emulated one is. Limits on time grow with it.
var Slow = slow()

// slowEnv is a whole number.
const slowEnv = "NETFENCE_TEST_SLOW"

func slow() time.Duration {
	n, err := strconv.Atoi(os.Getenv(slowEnv))
	if err != nil || n < 1 {
		return 1
	}
	return time.Duration(n)
}

// Eventually waits until cond holds and fails the test if it does not within
// Patience. It is for conditions that nobody announces; what can be waited for
// should be.
func Eventually(t TB, what string, cond func() bool) {
	t.Helper()
	if !poll(Patience, cond) {
		t.Fatalf("%s: not within %s", what, Patience)
	}
}

func poll(patience time.Duration, cond func() bool) bool {
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	again := time.NewTicker(2 * time.Millisecond)
	defer again.Stop()
	for !cond() {
		select {
		case <-deadline.C:
			return cond()
		case <-again.C:
		}
	}
	return true
}

// suiteEnv holds the process id of the Main that started this process. The names
// of what tests make contain it, so that leftovers are known for whose they are.
const suiteEnv = "NETFENCE_TEST_SUITE"

func suite() string {
	if s := os.Getenv(suiteEnv); s != "" {
		return s
	}
	return strconv.Itoa(os.Getpid())
}

var serial atomic.Uint64

// uniqueName returns a name that no other call in this suite returns. It begins
// with suitePrefix.
func uniqueName() string {
	return fmt.Sprintf("%s%d-%d", suitePrefix(suite()), os.Getpid(), serial.Add(1))
}

func suitePrefix(suite string) string { return "netfence-test-" + suite + "-" }
