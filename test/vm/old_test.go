// SPDX-License-Identifier: Apache-2.0

//go:build vm

package vm

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/netfence/netfence/test/harness"
	"github.com/netfence/netfence/test/vm/order"
)

func TestMain(m *testing.M) { harness.Main(m) }

// What Debian's cloud kernel has as modules and tests need.
var oldModules = []string{
	"net/llc/llc", "net/802/stp", "net/bridge/bridge", "drivers/net/veth", "drivers/net/tun",
	"net/sched/sch_ingress", "net/sched/cls_bpf",
}

// groupTime is what a group of tests gets. Two to four minutes are usual.
const groupTime = 15 * time.Minute

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
		"TestTransparentNames", "TestSameClientAddress", "TestResolveThenSend", "TestRefusedNames", "TestEventsNameTheDenied",
	}},
	{"cgroups", "e2e", []string{
		"TestCgroup", "TestNestedCgroups", "TestLoopbackOfACgroup", "TestLoopbackAddressesOnTheWire", "TestNestedNames", "TestDNSAddress",
	}},
	{"run", "e2e", []string{"TestRun", "TestRunHasNoWayOut", "TestRunExitCodes"}},
}

// oldSkips are tests that may be skipped there, and why.
var oldSkips = map[string]string{}

// TestOldKernel runs tests on the oldest kernel that Netfence promises, Debian 12's, which has neither tcx nor the
// functions by which programs read kernel structures.
func TestOldKernel(t *testing.T) {
	m := newImage(t, oldModules...)
	m.file("bin/netfenced", 0o755, build(t, "cmd/netfenced", false))
	for pkg, program := range map[string]string{"test/e2e": "e2e", "internal/datapath": "datapath"} {
		m.file("bin/"+program+".test", 0o755, build(t, pkg, true))
	}
	for _, g := range groups {
		t.Run(g.name, func(t *testing.T) {
			v := m.boot(t, nil, order.Order{Steps: []order.Step{{
				Name: g.program,
				Command: []string{"/bin/" + g.program + ".test", "-test.v", "-test.timeout=" + groupTime.String(),
					"-test.run=^(" + strings.Join(g.tests, "|") + ")$"},
				Env: []string{harness.BinaryEnv + "=/bin/netfenced", "NETFENCE_TEST_SLOW=6"},
			}}}, "-M", "q35", "-accel", "tcg,thread=multi", "-smp", "2", "-m", "1024")
			v.await(t, bootTime, order.Up)
			v.report(t, g.tests, groupTime)
		})
	}
}

// report reads what `go test` says. Each test has to have run.
func (v *machine) report(t *testing.T, tests []string, patience time.Duration) {
	t.Helper()
	end := v.await(t, patience, order.End)
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
