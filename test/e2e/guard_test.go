// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/test/harness"
)

// TestGuard: what the daemon's guard speaks of it decides, in every mode and in audit, for what is attached already when
// the guard changes too; the rest is the policy's.
func TestGuard(t *testing.T) {
	guard := func(rules string) string { return "NETFENCE_GUARD={allow: [" + alwaysAllowed + "], " + rules + "}" }
	s := newScene(t, testenv.VethDevice, guard("deny: [203.0.113.8/29]"))
	cg := testenv.NewCgroup(t)
	job := testenv.StartWorkload(t, s.Host, cg)
	s.Policy(t, "policy.yaml", "mode: block-all\n")
	s.Start(t)
	ids := []string{s.Attach(t, "--interface", s.Link), s.Attach(t, "--cgroup", cg.Path)}
	both := []*testenv.Workload{s.Inside, job}
	check := func(what, guarded string, guardedPasses, othersPass bool, workloads ...*testenv.Workload) {
		t.Helper()
		for _, w := range workloads {
			s.check(t, w, to(true, "198.51.100.1"), nil)
			s.check(t, w, to(guardedPasses, guarded), nil)
			s.check(t, w, to(othersPass, "203.0.113.1"), nil)
		}
		if t.Failed() {
			t.Fatalf("under policy %s", what)
		}
	}
	// Behind an interface block-all drops ARP too: nobody there finds the way to what the guard allows.
	check("block-all", "203.0.113.9", false, false, job)
	for _, p := range []struct {
		mode, text string
		audit      bool
	}{
		{"disabled", "mode: disabled\n", false},
		{"allowlist", "mode: allowlist\nallow: [203.0.113.0/24, 203.0.113.9, 203.0.113.9:7]\ndeny: [198.51.100.1]\n", false},
		{"denylist", "mode: denylist\ndeny: [198.51.100.1]\n", false},
		{"allowlist", "mode: allowlist\naudit: true\n", true},
	} {
		s.Policy(t, "policy.yaml", p.text)
		for _, id := range ids {
			testenv.Eventually(t, p.text, func() bool {
				shown := s.Show(t, id)
				return shown.Policy.Mode.String() == p.mode && shown.Policy.Audit == p.audit
			})
		}
		check(p.text, "203.0.113.9", false, true, both...)
	}
	for _, id := range ids {
		if got, want := s.Show(t, id).Guard.String(), "deny 203.0.113.8/29, allow 198.51.100.1/32, allow 2001:db8:100::1/128"; got != want {
			t.Errorf("policy show: guard %q, want %q", got, want)
		}
	}
	s.Follow(t).Provoke(t, "a denial of the guard's", func() { s.check(t, job, to(false, "203.0.113.9"), nil) }, func(e harness.Event) bool {
		f := e.DeniedFlow
		return f != nil && f.Address == "203.0.113.9" && f.Reason == "guard" && f.Rule == "guard deny 203.0.113.8/29" && !f.WouldDeny
	})

	s.Stop(t)
	s.Policy(t, "policy.yaml", "mode: allowlist\nallow: [203.0.113.1]\n")
	s.Env = []string{guard("deny: []")}
	s.Start(t)
	for _, id := range ids {
		testenv.Eventually(t, "the other guard", func() bool {
			shown := s.Show(t, id)
			return len(shown.Policy.Allow) == 1 && len(shown.Guard.Deny) == 0 && len(shown.Guard.Allow) == 2
		})
	}
	check("of another guard", "203.0.113.9", false, true, both...)
	s.Policy(t, "policy.yaml", "mode: allowlist\nallow: [203.0.113.0/24]\n")
	for _, id := range ids {
		testenv.Eventually(t, "the policy", func() bool { return s.Show(t, id).Policy.Allow[0].Prefix.Bits() == 24 })
	}
	check("of another guard, and it allows", "203.0.113.9", true, true, both...)
}

// TestStrict: a cgroup that holds what its filter does not confine is not attached, and nothing of it stays.
func TestStrict(t *testing.T) {
	s := newScene(t, testenv.VethDevice, "NETFENCE_STRICT=true")
	s.Policy(t, "policy.yaml", "mode: allowlist\n")
	s.Start(t)
	refused := func(cg *testenv.Cgroup, why string) {
		t.Helper()
		r := s.Run(t, "attach", "--cgroup", cg.Path)
		if want := fmt.Sprintf("attach cgroup %s: not confined, and the configuration is strict: %s", cg.Path, why); r.Code != 1 || !strings.Contains(r.Stderr, want) {
			t.Errorf("%+v, want %q", r, want)
		}
		if list := s.List(t); len(list) != 0 {
			t.Errorf("attached: %+v", list)
		}
	}
	root := testenv.NewCgroup(t)
	w := testenv.StartWorkload(t, s.Host, root)
	refused(root, "1 processes of the cgroup have CAP_NET_ADMIN, CAP_NET_RAW or CAP_BPF")
	s.check(t, w, to(true, "203.0.113.1"), nil) // no filter stayed

	// A process without capabilities that was started with a socket of somebody else's, as by inetd.
	handed := testenv.NewCgroup(t)
	conn := s.Host.ListenPacket(t, "udp4", "127.0.0.1:0")
	file, err := conn.(*net.UDPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	start := func(cg *testenv.Cgroup, files ...*os.File) {
		sleep := exec.Command("sleep", "1000")
		sleep.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		sleep.ExtraFiles = files
		testenv.Start(t, sleep, s.Host, cg)
	}
	start(handed, file)
	refused(handed, "1 processes of the cgroup hold sockets that were opened before they joined it")

	plain := testenv.NewCgroup(t)
	start(plain)
	s.Attach(t, "--cgroup", plain.Path)
	s.Attach(t, "--interface", s.Link)
}
