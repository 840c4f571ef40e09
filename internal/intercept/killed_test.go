// SPDX-License-Identifier: Apache-2.0

package intercept_test

import (
	"bufio"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/internal/datapath"
	"github.com/netfence/netfence/internal/intercept"
	"github.com/netfence/netfence/internal/testenv"
)

// listener is a process that does nothing but listen, as a daemon does.
var listener = testenv.NewFunc("listener", func(args []string) error {
	d, err := datapath.Open(datapath.Config{Dir: args[0]})
	if err != nil {
		return err
	}
	cgroups, err := intercept.OpenCgroups(d)
	if err != nil {
		return err
	}
	interfaces, err := intercept.OpenInterfaces(d)
	if err != nil {
		return err
	}
	respond(cgroups, nil)
	done := respond(interfaces, nil)
	fmt.Println("listening")
	done.Wait()
	return errors.New("nobody listens any more")
})

func startListener(t *testing.T, dir string) *exec.Cmd {
	t.Helper()
	cmd := listener.Command(dir)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	testenv.Start(t, cmd, nil, nil)
	if _, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	return cmd
}

// Killed, the listener leaves nothing that a query could leave by, and the next
// one takes over at the same address.
func TestKilledListener(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.Interfaces, testenv.Cgroup2)
	host := testenv.Self(t)
	w := testenv.NewWorld(t, host, testenv.BridgePort)
	cg := testenv.NewCgroup(t)
	dir := filepath.Join(testenv.BPFFS(t), "netfence")
	d := openAt(t, dir)
	cgroupID, cgroup := attach(t, d, cgroupTarget(t, cg), everywhere())
	_, device := attach(t, d, interfaceTarget(t, w.Link), everywhere())
	outside := testenv.Observe(t, w.Outside, "eth0")
	asked := append(questions(plainKinds, []string{"198.51.100.9", "2001:db8:100::53"}), questions(mappedKinds, []string{"198.51.100.9"})...)
	for range 2 {
		daemon := startListener(t, dir)
		answered(t, cgroup, asked, ask(t, nil, cg, asked...))
		answered(t, device, asked, ask(t, w.Workload, nil, asked...))
		if err := daemon.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = daemon.Wait() // it was killed
		gone := []unix.Errno{unix.EAGAIN, unix.EINPROGRESS, unix.ECONNREFUSED}
		few := []question{asked[0], asked[2], asked[4], asked[5]}
		unanswered(t, few, ask(t, w.Workload, nil, briefly(few)...), gone...)
		unanswered(t, asked, ask(t, nil, cg, briefly(asked)...), gone...)
		escaped(t, outside, w.Workload, nil)
		testenv.Eventually(t, "the killed listener's device goes", func() bool { return len(devices(t)) == 0 })
	}
	if routes := dnsRoutes(t); len(routes) != 1 {
		t.Errorf("routes %v, want the one of the listeners", routes)
	}
	if err := intercept.Remove(); err != nil {
		t.Fatal(err)
	}
	if routes := dnsRoutes(t); len(routes) != 0 {
		t.Errorf("routes %v are left", routes)
	}
	if a := d.DNSAddress(cgroupID); a != "" {
		t.Errorf("DNS address %s, and nobody has listened here", a)
	}
}

// Whoever listens in a killed listener's place hears nothing of its attachments,
// though one of its own has the same index.
func TestAnotherInTheKilledListenersPlace(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.Cgroup2)
	left, cg := testenv.NewCgroup(t), testenv.NewCgroup(t)
	dir := filepath.Join(testenv.BPFFS(t), "netfence")
	_, orphan := attach(t, openAt(t, dir), cgroupTarget(t, left), everywhere())
	daemon := startListener(t, dir)
	asked := append(questions(plainKinds, []string{"9.9.9.9", "2620:fe::fe"}), questions(mappedKinds, []string{"9.9.9.9"})...)
	answered(t, orphan, asked, ask(t, nil, left, asked...))
	if err := daemon.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = daemon.Wait() // it was killed

	d := open(t)
	id, index := attach(t, d, cgroupTarget(t, cg), everywhere())
	front(t, intercept.OpenCgroups, d)
	if index != orphan || !strings.HasSuffix(d.DNSAddress(id), ":253") {
		t.Fatalf("index %d, not %d, at %s", index, orphan, d.DNSAddress(id))
	}
	unanswered(t, asked, ask(t, nil, left, briefly(asked)...), unix.EAGAIN, unix.EINPROGRESS, unix.ECONNREFUSED)
	asked = append(asked, explicit(d.DNSAddress(id))...)
	answered(t, index, asked, ask(t, nil, cg, asked...))
}

var remove = testenv.NewFunc("remove", func([]string) error { return intercept.Remove() })

// Who is filtered, as a run inside of an attached cgroup is, leaves the
// listener's route alone, and fails for nothing.
func TestRemoveInsideOfAnAttachment(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.Cgroup2)
	cg := testenv.NewCgroup(t)
	d := open(t)
	attach(t, d, cgroupTarget(t, cg), everywhere())
	front(t, intercept.OpenCgroups, d)
	cmd := remove.Command()
	testenv.Start(t, cmd, nil, cg)
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if routes := dnsRoutes(t); len(routes) != 1 {
		t.Errorf("routes %v, want that of the listener", routes)
	}
}

// devices are the ends of veths that lead to listeners.
func devices(t *testing.T) []string {
	t.Helper()
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, "nfdns-") {
			names = append(names, l.Attrs().Name)
		}
	}
	return names
}

func dnsRoutes(t *testing.T) []netlink.Route {
	t.Helper()
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{Table: unix.RT_TABLE_LOCAL}, netlink.RT_FILTER_TABLE)
	if err != nil {
		t.Fatal(err)
	}
	var ours []netlink.Route
	for _, r := range routes {
		if r.Dst != nil && r.Dst.String() == datapath.DNSRange6().String() {
			ours = append(ours, r)
		}
	}
	return ours
}

// Two processes that listen do not get in each other's way, and leave nothing.
func TestTwoListeners(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.Interfaces, testenv.Cgroup2)
	var fronts []*intercept.Front
	for range 2 {
		cg := testenv.NewCgroup(t)
		d := open(t)
		id, index := attach(t, d, cgroupTarget(t, cg), everywhere())
		fronts = append(fronts, front(t, intercept.OpenCgroups, d), front(t, intercept.OpenInterfaces, d))
		asked := append(questions(plainKinds, []string{"9.9.9.9", "2620:fe::fe"}), explicit(d.DNSAddress(id))...)
		answered(t, index, asked, ask(t, nil, cg, asked...))
	}
	if routes := dnsRoutes(t); len(routes) != 2 {
		t.Errorf("routes %v, want one for each", routes)
	}
	if err := intercept.Remove(); err != nil {
		t.Fatal(err)
	}
	if routes := dnsRoutes(t); len(routes) != 2 {
		t.Errorf("routes %v after Remove, want those of who listens", routes)
	}
	for _, f := range fronts {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
	if left := devices(t); len(left) != 0 {
		t.Errorf("devices %v are left", left)
	}
	if routes := dnsRoutes(t); len(routes) != 0 {
		t.Errorf("routes %v are left", routes)
	}
}
