// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

// example is main as a process of its own.
var example = testenv.NewFunc("controlplane", func([]string) error {
	main()
	return nil
})

// TestExample attaches to the real daemon, driven by the example, and tries what the tenant's file says, before and after
// it changes.
func TestExample(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.Interfaces)
	const address = "127.0.0.1:9000"
	dir := t.TempDir()
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "acme.yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("mode: allowlist\nallow: [10.0.0.0/16, \"192.0.2.10:443/tcp\"]\n")
	w := testenv.NewWorld(t, testenv.NewNS(t), testenv.VethDevice)
	for _, prefix := range []string{"10.0.0.0/16", "192.0.2.10/32"} {
		w.Outside.Own(t, netip.MustParsePrefix(prefix))
	}
	testenv.EchoServer(t, w.Outside, 7)
	testenv.EchoServer(t, w.Outside, 443)
	plane := example.Command(address, dir)
	testenv.Start(t, plane, w.Host, nil)
	d := harness.New(t, w.Host, "NETFENCE_CONTROL_PLANE_URL="+address)
	d.Start(t)
	testenv.Eventually(t, "connection to the example", func() bool { return d.Status(t).ControlPlaneState == "connected" })

	if out := d.Run(t, "attach", "--interface", w.Link, "--metadata", "tenant=nobody"); out.Code == 0 {
		t.Errorf("a tenant without a file: %+v", out)
	}
	id := d.Attach(t, "--interface", w.Link, "--metadata", "tenant=acme")
	workload := testenv.StartWorkload(t, w.Workload, nil)
	reaches := func(kind testenv.ProbeKind, to string, wait time.Duration) bool {
		t.Helper()
		return workload.Probe(t, testenv.Probe{Kind: kind, To: netip.MustParseAddrPort(to), Wait: wait}).Answered
	}
	for to, want := range map[string]bool{"10.0.0.1:7": true, "192.0.2.10:443": true, "192.0.2.10:7": false, "169.254.169.254:7": false} {
		wait := 300 * time.Millisecond
		if want {
			wait = testenv.Patience
		}
		if got := reaches(testenv.TCP, to, wait); got != want {
			t.Errorf("%s: passed %v, want %v", to, got, want)
		}
	}
	if reaches(testenv.UDPSendto, "192.0.2.10:443", 300*time.Millisecond) {
		t.Error("UDP to 192.0.2.10:443 passed")
	}

	write("mode: allowlist\nallow: [192.0.2.10]\n")
	if err := plane.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, "the changed file", func() bool { return reaches(testenv.TCP, "192.0.2.10:7", 300*time.Millisecond) })
	if reaches(testenv.TCP, "10.0.0.1:7", 300*time.Millisecond) {
		t.Error("10.0.0.1:7 passed after the change")
	}
	d.Must(t, "detach", "--id", id)
}
