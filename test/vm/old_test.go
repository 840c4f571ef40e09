// SPDX-License-Identifier: Apache-2.0

//go:build vm

package vm

import (
	"flag"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/test/harness"
	"github.com/netfence/netfence/test/vm/order"
)

func TestMain(m *testing.M) { harness.Main(m) }

// What Debian's cloud kernel has as modules and tests need.
var oldModules = []string{
	"net/llc/llc", "net/802/stp", "net/bridge/bridge", "drivers/net/veth", "drivers/net/tun",
	"net/sched/sch_ingress", "net/sched/cls_bpf",
}

// only is for who works on a test: go test -tags=vm -run=TestOldKernel/names ./test/vm -only='^TestRefusedNames$'
var only = flag.String("only", "", "run what matches instead of all tests of a group")

// groups are the tests that a boot runs: of what differs on an old kernel, all; of the rest, enough to see that
// nothing else does.
var groups = []struct {
	name, program string
	tests         []string
}{
	{"programs", "datapath", []string{
		"TestPackets", "TestTruncatedPacketsAreDropped", "TestModes", "TestUnknownInterfaceIsDropped", "TestShut",
		"TestKernelAgreesWithPolicy", "TestPacketsThatRewriteThemselvesAreDropped", "TestGuard", "TestSource", "TestAudit",
		"TestRulingsAreForOnePolicyAndDestination", "TestPassesAreForOneFlow", "TestNeighbourDiscoveryOnLink",
		"TestReplies", "TestRepliesUDP", "TestWorkloadForgesNoReplyFlow", "TestLearnedAddresses", "TestLearnedFlowsGoOn",
		"TestQueriesThereAndBack", "TestQueriesThatAreDropped", "TestDropsOfAnInterfaceAreToldOf",
	}},
	{"cgroup programs", "datapath", []string{
		"TestARuleForARemoteAddressIsNoneForTheHost", "TestBroadcastThroughLoopbackReachesNotOnlyOwn",
		"TestTimeWaitHidesNoListener", "TestRepliesThroughLoopbackOutliveAPolicy", "TestLearnedAddressesOfACgroup",
		"TestGuardOfACgroup", "TestAuditOfACgroup", "TestDropsOfACgroupAreToldOf", "TestCgroupStorageIsZeroedByDetach",
		"TestOriginalServers",
	}},
	{"filters", "datapath", []string{
		"TestFilter.*", "TestAttachIsClosedAndDetachIsWhole", "TestAttachPutsLinksBack", "TestOpenAdopts",
		"TestOpenRemovesLeftovers", "TestVanishedTargets", "TestRemoveAll", "TestWatchEndsWhatHasNoTarget",
	}},
	{"interfaces", "e2e", []string{
		"TestInterface", "TestEgress", "TestRuleChangeCutsOpenConnections", "TestRestart", "TestVanishedTarget",
		"TestRenamedInterface", "TestKilledUnderLoad",
	}},
	{"names", "e2e", []string{
		"TestSameClientAddress", "TestRefusedNames", "TestEventsNameTheDenied", "TestNestedNames", "TestDNSAddress",
		"TestTwoOriginalServers", "TestOriginalServersThatAreNotAsked",
	}},
	{"cgroups", "e2e", []string{"TestCgroup", "TestNestedCgroups", "TestLoopbackOfACgroup", "TestLoopbackAddressesOnTheWire"}},
	{"run", "e2e", []string{"TestRun", "TestRunExitCodes"}},
}

// oldSkips are tests that may be skipped there, and why.
var oldSkips = map[string]string{
	"TestFilterIsAdoptedAsItIs": "what clsact holds is adopted by a daemon that would use tcx, which is not there",
}

// TestOldKernel runs tests on the oldest kernel that Netfence promises, Debian 12's, which has neither tcx nor the
// functions by which programs read kernel structures.
func TestOldKernel(t *testing.T) {
	m := newImage(t, oldModules...)
	m.file("bin/netfenced", 0o755, build(t, "cmd/netfenced", false))
	for pkg, program := range map[string]string{"test/e2e": "e2e", "internal/datapath": "datapath"} {
		m.file("bin/"+program+".test", 0o755, build(t, pkg, true))
	}
	m.programs(t, "bash", "busybox", "dig", "id", "sh", "sleep", "timeout", "true")
	for _, libc := range []testenv.Resolver{testenv.Glibc, testenv.Musl} {
		path, err := testenv.Getaddrinfo(libc)
		if err != nil {
			t.Fatal(err)
		}
		m.program(t, path, "/bin/getaddrinfo/"+string(libc))
	}
	for path, text := range map[string]string{
		"etc/resolv.conf": "", // for tests to put theirs over
		"etc/passwd":      "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
		"etc/group":       "root:x:0:\nnogroup:x:65534:\n",
	} {
		m.file(path, 0o644, []byte(text))
	}
	for _, g := range groups {
		t.Run(g.name, func(t *testing.T) {
			t.Parallel() // each has one processor
			run := "^(" + strings.Join(g.tests, "|") + ")$"
			if *only != "" {
				run, g.tests = *only, nil
			}
			v := m.boot(t, nil, ownTime, order.Order{Steps: []order.Step{{
				Name:    g.program,
				Command: []string{"/bin/" + g.program + ".test", "-test.v", "-test.timeout=1h", "-test.run=" + run},
				Env: []string{
					harness.BinaryEnv + "=/bin/netfenced", "NETFENCE_TEST_GETADDRINFO=/bin/getaddrinfo", "NETFENCE_TEST_SLOW=6",
				},
			}}}, "-m", "1024")
			t.Log(v.await(t, bootTime, order.Up))
			v.report(t, g.tests)
		})
	}
}

// report reads what `go test` says. Each test has to have run.
func (v *machine) report(t *testing.T, tests []string) {
	t.Helper()
	var end string
	for end == "" {
		line := v.await(t, untilDeadline(t), order.End, "--- ")
		if strings.HasPrefix(line, order.End) {
			end = line
			continue
		}
		t.Log(line)
	}
	var code int
	if _, err := fmt.Sscan(strings.TrimPrefix(end, order.End), &code); err != nil || code != 0 {
		t.Errorf("%s", end)
	}
	var passed []string
	for line := range strings.Lines(v.log.String()) {
		var verdict, name, took string
		if n, _ := fmt.Sscanf(strings.TrimSpace(line), "--- %s %s %s", &verdict, &name, &took); n != 3 {
			continue
		}
		switch {
		case verdict == "PASS:":
			passed = append(passed, name)
		case verdict == "SKIP:" && oldSkips[name] != "":
			t.Logf("skipped, since %s: %s", oldSkips[name], name)
			passed = append(passed, name)
		default:
			t.Errorf("%s %s %s", verdict, name, took)
		}
	}
	for _, test := range tests {
		if !strings.Contains(test, "*") && !slices.Contains(passed, test) {
			t.Errorf("%s has not run", test)
		}
	}
	t.Logf("%d tests and parts of tests passed", len(passed))
}

// untilDeadline is the time that the run's own limit leaves, but for what is left to say then.
func untilDeadline(t *testing.T) time.Duration {
	deadline, ok := t.Deadline()
	if !ok {
		return time.Hour
	}
	return time.Until(deadline) - time.Minute
}
