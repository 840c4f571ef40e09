// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/netip"
	"testing"
	"time"

	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

// example is main as a process of its own.
var example = testenv.NewFunc("protocol", func([]string) error {
	main()
	return nil
})

// TestExample attaches to the real daemon, driven by the example, and tries what its policy says.
func TestExample(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.Interfaces)
	const address = "127.0.0.1:9000"
	w := testenv.NewWorld(t, testenv.NewNS(t), testenv.VethDevice)
	for _, prefix := range []string{"10.0.0.0/16", "192.0.2.10/32"} {
		w.Outside.Own(t, netip.MustParsePrefix(prefix))
	}
	testenv.EchoServer(t, w.Outside, 7)
	testenv.EchoServer(t, w.Outside, 443)
	testenv.Start(t, example.Command(address), w.Host, nil)
	d := harness.New(t, w.Host, "NETFENCE_CONTROL_PLANE_URL="+address)
	d.Start(t)
	testenv.Eventually(t, "connection to the example", func() bool { return d.Status(t).ControlPlaneState == "connected" })

	id := d.Attach(t, "--interface", w.Link)
	workload := testenv.StartWorkload(t, w.Workload, nil)
	for _, try := range []struct {
		kind   testenv.ProbeKind
		to     string
		passes bool
	}{
		{testenv.TCP, "10.0.0.1:7", true},
		{testenv.UDPSendto, "10.0.255.255:7", true},
		{testenv.Echo, "10.0.3.4:0", true},
		{testenv.TCP, "192.0.2.10:443", true},
		{testenv.UDPSendto, "192.0.2.10:443", false},
		{testenv.TCP, "192.0.2.10:7", false},
		{testenv.TCP, "198.51.100.1:443", false},
		{testenv.TCP, "169.254.169.254:7", false},
	} {
		probe := testenv.Probe{Kind: try.kind, To: netip.MustParseAddrPort(try.to), Wait: 300 * time.Millisecond}
		if try.passes {
			probe.Wait = testenv.Patience
		}
		if out := workload.Probe(t, probe); out.Answered != try.passes {
			t.Errorf("%s %s: %s, want passed %v", try.kind, try.to, out, try.passes)
		}
	}
	d.Must(t, "detach", "--id", id)
}
