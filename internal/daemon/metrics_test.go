// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/internal/testenv"
)

// metric is the value of a series as it is scraped, "" if it is not there.
func metric(t *testing.T, address, series string) string {
	t.Helper()
	client := http.Client{Timeout: testenv.Patience, Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := client.Get("http://" + address + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != http.StatusOK {
		t.Fatalf("%s, %v: %s", r.Status, err, body)
	}
	for line := range strings.Lines(string(body)) {
		if value, ok := strings.CutPrefix(line, series+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// freePort is one that nobody listens on, in the suite's namespace.
func freePort(t *testing.T) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

func (i *instance) attach(t *testing.T, r *netfencev1.AttachRequest) string {
	t.Helper()
	response, err := i.client.Attach(t.Context(), r)
	if err != nil {
		t.Fatalf("%v\n%s", err, i.log)
	}
	return response.GetId()
}

func TestMetrics(t *testing.T) {
	i := newInstance(t)
	i.policy(t, "a.yaml", "mode: denylist\ndeny: [192.0.2.1]\n")
	address := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	i.config.Metrics.Listen = address
	i.start(t)
	ns, far := testenv.Self(t), testenv.NewNS(t)
	testenv.Veth(t,
		testenv.End{NS: ns, Name: "host0", Addrs: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/30")}},
		testenv.End{NS: far, Name: "eth0", Addrs: []netip.Prefix{netip.MustParsePrefix("192.0.2.2/30")}},
	)
	id := i.attach(t, &netfencev1.AttachRequest{Target: &netfencev1.AttachRequest_InterfaceName{InterfaceName: "host0"}})
	testenv.StartWorkload(t, far, nil).Probe(t, testenv.Probe{
		Kind: testenv.UDPSendto, To: netip.MustParseAddrPort("192.0.2.1:9"), Count: 3,
	})
	const drops = `netfence_dropped_packets_total{reason="deny-rule"}`
	testenv.Eventually(t, drops+" is 3", func() bool { return metric(t, address, drops) == "3" }) // the first waited for ARP
	const attachments = `netfence_attachments{audit="no",mode="denylist",type="interface"}`
	if got := metric(t, address, attachments); got != "1" {
		t.Errorf("%s: %s", attachments, got)
	}
	if got := metric(t, address, `netfence_control_plane_state{state="connected"}`); got != "1" {
		t.Errorf("control plane: %s", got)
	}
	if _, err := i.client.Detach(t.Context(), &netfencev1.DetachRequest{Id: id}); err != nil {
		t.Fatal(err)
	}
	if got := metric(t, address, drops); got != "3" {
		t.Errorf("%s after the end: %s", drops, got)
	}
	i.stop()
	i.start(t) // nobody keeps the port
}

// TestWorkloadsDoNotReachTheMetrics tries with policies that allow everything. What listens beside the metrics shows
// that it would be reached.
func TestWorkloadsDoNotReachTheMetrics(t *testing.T) {
	const all = "192.0.2.1" // an address of the host's
	for listen, tries := range map[string][]string{
		"":          {"127.0.0.1", "::1", "127.0.0.2", all},
		"127.0.0.1": {"127.0.0.1"},
		all:         {all},
	} {
		for _, mode := range []string{"disabled", "denylist\nloopback: allow", "allowlist\nallow: [0.0.0.0/0, '::/0']\nloopback: allow"} {
			t.Run(fmt.Sprintf("%s %.9s", listen, mode), func(t *testing.T) {
				ns, far := testenv.Self(t), testenv.NewNS(t)
				testenv.Veth(t,
					testenv.End{NS: ns, Name: "host0", Addrs: []netip.Prefix{netip.MustParsePrefix(all + "/30")}},
					testenv.End{NS: far, Name: "eth0", Addrs: []netip.Prefix{netip.MustParsePrefix("192.0.2.2/30")}},
				)
				i := newInstance(t)
				i.policy(t, "a.yaml", "mode: "+mode+"\n")
				port := freePort(t)
				i.config.Metrics.Listen = fmt.Sprintf("%s:%d", listen, port)
				i.start(t)
				beside := freePort(t)
				testenv.EchoServer(t, ns, beside)
				cgroup := testenv.NewCgroup(t)
				outside := testenv.StartWorkload(t, ns, nil)
				inside, behind := testenv.StartWorkload(t, ns, cgroup), testenv.StartWorkload(t, far, nil)
				i.attach(t, &netfencev1.AttachRequest{Target: &netfencev1.AttachRequest_InterfaceName{InterfaceName: "host0"}})
				i.attach(t, &netfencev1.AttachRequest{Target: &netfencev1.AttachRequest_CgroupPath{CgroupPath: cgroup.Path}})

				reaches := func(w *testenv.Workload, to string, port uint16) (bool, unix.Errno) {
					t.Helper()
					out := w.Probe(t, testenv.Probe{
						Kind: testenv.TCP, To: netip.AddrPortFrom(netip.MustParseAddr(to), port), Wait: 300 * time.Millisecond,
					})
					return out.Answered, out.Errno
				}
				for _, to := range tries {
					if ok, _ := reaches(outside, to, port); !ok {
						t.Errorf("who is not filtered does not reach %s", to)
					}
					if ok, _ := reaches(inside, to, beside); !ok {
						t.Errorf("the cgroup does not reach what is beside at %s", to)
					}
					ok, errno := reaches(inside, to, port)
					if ok {
						t.Errorf("the cgroup reaches %s", to)
					}
					if early := listen != "" || to != all; early && errno != unix.EPERM {
						t.Errorf("connect to %s: %v, want EPERM", to, errno)
					}
				}
				if ok, _ := reaches(behind, all, beside); !ok {
					t.Error("the interface does not reach what is beside")
				}
				if ok, _ := reaches(behind, all, port); ok {
					t.Error("the interface reaches the metrics")
				}
			})
		}
	}
}

func TestMetricsPortTaken(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	i := newInstance(t)
	i.config.Metrics.Listen = taken.Addr().String()
	err = Run(t.Context(), i.config, "v1", i.log)
	want := "start: metrics.listen " + taken.Addr().String() + ": somebody else listens there (choose another port, or off)"
	if err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
}
