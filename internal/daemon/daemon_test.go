// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/internal/config"
	"github.com/netfence/netfence/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// instance is a daemon with directories of its own, in the network namespace of the suite.
type instance struct {
	config *config.Config
	log    *logBuffer
	stop   func() // waits, and fails the test if Run failed
	client netfencev1.DaemonServiceClient
}

func newInstance(t *testing.T) *instance {
	t.Helper()
	testenv.Require(t, testenv.Root, testenv.Cgroup2)
	dir := t.TempDir()
	c := config.Default()
	c.Socket, c.RunDir, c.DataDir = filepath.Join(dir, "d.sock"), filepath.Join(dir, "run"), filepath.Join(dir, "data")
	c.BPFDir = filepath.Join(testenv.BPFFS(t), "netfence")
	c.ControlPlane.URL = config.Endpoint{Dir: filepath.Join(dir, "policies")}
	if err := os.Mkdir(c.ControlPlane.URL.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return &instance{config: c, log: &logBuffer{}}
}

// start runs the daemon and returns when it says that it is ready.
func (i *instance) start(t *testing.T) {
	t.Helper()
	ready := filepath.Join(t.TempDir(), "ready")
	notified, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: ready, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer notified.Close()
	t.Setenv("NOTIFY_SOCKET", ready)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, i.config, "v1", i.log) }()
	stopped := false
	i.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("%v\n%s", err, i.log)
		}
	}
	t.Cleanup(i.stop)
	if err := notified.SetReadDeadline(time.Now().Add(testenv.Patience)); err != nil {
		t.Fatal(err)
	}
	message := make([]byte, 64)
	n, err := notified.Read(message)
	if err != nil || string(message[:n]) != "READY=1" {
		t.Fatalf("notified %q, %v\n%s", message[:n], err, i.log)
	}
	conn, err := grpc.NewClient("unix:"+i.config.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
	i.client = netfencev1.NewDaemonServiceClient(conn)
}

func (i *instance) policy(t *testing.T, name, text string) {
	t.Helper()
	path := filepath.Join(i.config.ControlPlane.URL.Dir, name)
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func (i *instance) list(t *testing.T) []*netfencev1.AttachmentInfo {
	t.Helper()
	r, err := i.client.List(t.Context(), &netfencev1.ListRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return r.GetAttachments()
}

// host makes a veth pair in the suite's namespace and returns the end to attach.
func host(t *testing.T) string {
	t.Helper()
	ns, workload := testenv.Self(t), testenv.NewNS(t)
	testenv.Veth(t,
		testenv.End{NS: ns, Name: "host0", Addrs: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/30")}},
		testenv.End{NS: workload, Name: "eth0", Addrs: []netip.Prefix{netip.MustParsePrefix("192.0.2.2/30")}},
	)
	return "host0"
}

// The whole life: start, attach both kinds, stop, start again, lose a target, stop, clear.
func TestDaemon(t *testing.T) {
	i := newInstance(t)
	i.policy(t, "a.yaml", "mode: allowlist\nallow: [192.0.2.0/24]\n")
	i.start(t)

	device, cgroup := host(t), testenv.NewCgroup(t)
	first, err := i.client.Attach(t.Context(), &netfencev1.AttachRequest{
		Target: &netfencev1.AttachRequest_InterfaceName{InterfaceName: device}, Key: "job-7",
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, i.log)
	}
	second, err := i.client.Attach(t.Context(), &netfencev1.AttachRequest{
		Target: &netfencev1.AttachRequest_CgroupPath{CgroupPath: cgroup.Path},
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, i.log)
	}
	got, err := i.client.Get(t.Context(), &netfencev1.GetRequest{Key: "job-7"})
	if err != nil || got.GetPending() || len(got.GetPolicy().GetAllowCidrs()) != 1 ||
		got.GetAttachment().GetMode() != netfencev1.PolicyMode_POLICY_MODE_ALLOWLIST {
		t.Errorf("in force: %v, %v", got, err)
	}
	before, err := i.client.GetStatus(t.Context(), &emptypb.Empty{})
	if err != nil || before.GetAttachmentCount() != 2 || len(before.GetProblems()) > 0 ||
		before.GetControlPlaneState() != netfencev1.ConnectionState_CONNECTION_STATE_CONNECTED {
		t.Errorf("status: %v, %v", before, err)
	}

	i.stop()
	if _, err := os.Lstat(i.config.Socket); !os.IsNotExist(err) {
		t.Errorf("socket after stop: %v", err)
	}
	i.start(t)
	after, err := i.client.GetStatus(t.Context(), &emptypb.Empty{})
	if err != nil || after.GetDaemonId() != before.GetDaemonId() {
		t.Errorf("after a restart: %v, %v", after, err)
	}
	if list := i.list(t); len(list) != 2 || list[0].GetId() != first.GetId() || list[1].GetId() != second.GetId() {
		t.Errorf("after a restart: %v", list)
	}
	r, err := i.client.Attach(t.Context(), &netfencev1.AttachRequest{
		Target: &netfencev1.AttachRequest_InterfaceName{InterfaceName: device}, Key: "job-7",
	})
	if err != nil || r.GetCreated() || r.GetId() != first.GetId() {
		t.Errorf("attached again: %v, %v", r, err)
	}

	cgroup.Remove(t)
	testenv.Eventually(t, "the removed cgroup leaves the list", func() bool { return len(i.list(t)) == 1 })

	err = Clear(i.config)
	if err == nil || !strings.HasPrefix(err.Error(), "detach all: lock ") {
		t.Errorf("clear beside a daemon: %v", err)
	}
	i.stop()
	if err := Clear(i.config); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(i.config.BPFDir); !os.IsNotExist(err) {
		t.Errorf("pins after clear: %v", err)
	}
	i.start(t)
	if list := i.list(t); len(list) > 0 {
		t.Errorf("after clear: %v", list)
	}
}

func TestBrokenPolicyRollsBack(t *testing.T) {
	i := newInstance(t)
	i.policy(t, "a.yaml", "mode: [")
	i.start(t)
	_, err := i.client.Attach(t.Context(), &netfencev1.AttachRequest{
		Target: &netfencev1.AttachRequest_InterfaceName{InterfaceName: host(t)},
	})
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "a.yaml") {
		t.Errorf("got %v", err)
	}
	if list := i.list(t); len(list) > 0 {
		t.Errorf("left: %v", list)
	}
	if links, err := filepath.Glob(filepath.Join(i.config.BPFDir, "v3/links/*")); err != nil || len(links) > 0 {
		t.Errorf("left pinned: %v, %v", links, err)
	}
	st, err := i.client.GetStatus(t.Context(), &emptypb.Empty{})
	if err != nil || len(st.GetProblems()) != 1 || !strings.Contains(st.GetProblems()[0], "a.yaml") {
		t.Errorf("status: %v, %v", st, err)
	}
}

func TestSecondDaemon(t *testing.T) {
	i := newInstance(t)
	i.start(t)
	err := Run(t.Context(), i.config, "v1", i.log)
	want := "start: lock " + filepath.Join(i.config.RunDir, "lock") +
		": another netfenced holds it (stop that one, or set another run_dir, bpf_dir and socket)"
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	other := *i.config
	other.RunDir = filepath.Join(t.TempDir(), "run")
	err = Run(t.Context(), &other, "v1", i.log)
	if err == nil || !strings.Contains(err.Error(), "socket "+i.config.Socket+": in use: another daemon answers there") {
		t.Errorf("same socket: %v", err)
	}
	i.list(t) // the first is unharmed
}

func TestUnreadableStateChangesNothing(t *testing.T) {
	i := newInstance(t)
	i.start(t)
	i.stop()
	path := filepath.Join(i.config.RunDir, stateFile)
	if err := os.WriteFile(path, []byte(strings.Repeat("x", 64<<10)), 0o600); err != nil {
		t.Fatal(err)
	}
	err := Run(t.Context(), i.config, "v1", i.log)
	if err == nil || !strings.Contains(err.Error(), "start: state file "+path+": unreadable") {
		t.Errorf("got %v", err)
	}
	if data, err := os.ReadFile(path); err != nil || data[0] != 'x' {
		t.Errorf("the file was changed: %v", err)
	}
}

func TestPrivilegesAreNamed(t *testing.T) {
	testenv.Require(t, testenv.Root)
	result := make(chan error, 1)
	go func() {
		// Capabilities are the thread's, which ends with this goroutine.
		runtime.LockOSThread()
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&header, &none[0]); err != nil {
			result <- err
			return
		}
		result <- checkPrivileges()
	}()
	want := "missing privileges: CAP_DAC_READ_SEARCH, CAP_NET_BIND_SERVICE, CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_PERFMON, CAP_BPF (run as root)"
	if err := <-result; err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	if err := checkPrivileges(); err != nil {
		t.Errorf("as root: %v", err)
	}
}
