// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/test/harness"
)

const picture = `
   container              host                     outside
 ┌───────────┐      ┌───────────────┐      ┌────────────────────────┐
 │           │      │               │      │ 198.51.100.0/24        │
 │ 10.77.0.2 ├──────┤ work0     up0 ├──────┤ 203.0.113.0/24         │
 │           │      │ ▲ the filter  │      │ 169.254.169.254        │
 └───────────┘      └───────────────┘      │ 2001:db8:100::/48, …   │
                                           │ resolvers, of ours:    │
                                           │ 198.51.100.53, and     │
                                           │ of others: 9.9.9.9     │
                                           └────────────────────────┘`

// agents is the policy; the comments are what the reader is to see.
const agents = `match: {tenant: acme}       # every attachment with this metadata
mode: allowlist             # what no rule names is dropped
allow:
  - 198.51.100.0/24         # our own services
  - 2001:db8:100::/48
  - {cidr: 203.0.113.10, ports: [443/tcp]}
dns:
  allow: ["*.pypi.example"] # names, and what their answers point to
deny:
  - 198.51.100.66           # but not this one: the longer prefix wins
`

// denied is what a later chapter adds to it.
const denied = "  - 198.51.100.10\n"

// play is the story's props.
type play struct {
	*stage
	world     *testenv.World
	wire      *testenv.Observer // what arrives outside
	daemon    *harness.Daemon
	container *testenv.Workload
	cgroup    *testenv.Cgroup
	process   *testenv.Workload // in the cgroup, on the host
	upstream  *testenv.Nameserver
	foreign   *testenv.Nameserver

	containerID string
	open        *testenv.Conn // the container's, to 198.51.100.20
	tried       int
	began       time.Time
}

// tell is the whole story.
func tell(s *stage) {
	testenv.Require(s, testenv.Root, testenv.Cgroup2, testenv.Interfaces)
	p := &play{stage: s, began: time.Now()}
	heading("Netfence: what a workload may send is decided in the kernel.")
	say(picture)
	say(`
All of this is made of network namespaces and a cgroup, only for this play. Each line with a ✓ or a ✗ is real
packets, sent just now, and ✗ is what did not come out as stated.`)
	p.build()
	for i, chapter := range []struct {
		title string
		tell  func()
	}{
		{"Without a filter, everything goes", p.unfiltered},
		{"Start the daemon on a folder of policies, and attach", p.attach},
		{"What the container can reach", p.outbound},
		{"Who asks the container gets an answer", p.inbound},
		{"A process in a cgroup is told at once", p.early},
		{"Names: whoever is asked, Netfence answers", p.names},
		{"A name's time is up", p.expire},
		{"A rule changes, and reaches open connections", p.change},
		{"kill -9: the daemon is gone, the filter is not", p.kill},
		{"Start again, look, and detach", p.again},
		{"One command, and no setup", p.fence},
	} {
		p.goOn()
		heading(fmt.Sprintf("%d. %s", i+1, chapter.title))
		chapter.tell()
	}
	if p.fails() {
		heading("Not all came out as stated.")
		return
	}
	heading(fmt.Sprintf("%d verdicts, each as stated, in %.1f s.", p.tried, time.Since(p.began).Seconds()))
}

// build makes the world of the picture.
func (p *play) build() {
	p.world = testenv.NewWorld(p, testenv.NewNS(p), testenv.VethDevice)
	for _, port := range []uint16{123, 80, 443} {
		testenv.EchoServer(p, p.world.Outside, port)
	}
	p.wire = testenv.Observe(p, p.world.Outside, "eth0")
	p.container = testenv.StartWorkload(p, p.world.Workload, nil)
	p.cgroup = testenv.NewCgroup(p)
	p.process = testenv.StartWorkload(p, p.world.Host, p.cgroup)
	p.upstream = testenv.ServeDNS(p, p.world.Outside, internet, upstream)
	p.foreign = testenv.ServeDNS(p, p.world.Outside, hearsay, foreign, testenv.ForeignResolver6)
	p.daemon = harness.New(p, p.world.Host, brief...)
}

// run shows a netfenced command, runs it and shows what it printed.
func (p *play) run(args ...string) string {
	p.goOn()
	prompt("netfenced " + strings.Join(args, " "))
	out := p.daemon.Must(p, args...)
	if out != "" {
		quote(out)
	}
	gap()
	return out
}

func (p *play) unfiltered() {
	p.try(p.container, trial{passes, testenv.TCP, "203.0.113.9:80", "nobody minds"})
	p.try(p.container, trial{passes, testenv.TCP, "169.254.169.254:80", "a cloud's metadata service, credentials and all"})
}

func (p *play) attach() {
	say("agents.yaml in the policy folder:")
	quote(agents)
	p.daemon.Policy(p, "agents.yaml", agents)
	p.start()
	p.containerID = p.run("attach", "--interface", p.world.Link, "--metadata", "tenant=acme")
	p.run("attach", "--cgroup", p.cgroup.Path, "--metadata", "tenant=acme")
	say("Until attach returned, nothing passed at all. It returned when the policy was in force.")
}

func (p *play) start() {
	p.goOn()
	prompt("netfenced start --config " + p.daemon.Config + " &")
	p.daemon.Start(p)
	quote("ready")
}

func (p *play) outbound() {
	for _, t := range []trial{
		{passes, testenv.TCP, "198.51.100.10:80", "allow 198.51.100.0/24"},
		{dropped, testenv.TCP, "203.0.113.9:80", "no rule names it"},
		{dropped, testenv.TCP, "198.51.100.66:80", "deny 198.51.100.66, inside what is allowed"},
		{passes, testenv.TCP, "203.0.113.10:443", "allow 203.0.113.10, port 443/tcp"},
		{dropped, testenv.TCP, "203.0.113.10:80", "another port"},
		{dropped, testenv.UDPSendto, "203.0.113.10:443", "another protocol"},
		{passes, testenv.UDPSendto, "198.51.100.10:123", "an unconnected socket makes no difference"},
		{dropped, testenv.UDPSendto, "203.0.113.9:123", "here neither"},
		{dropped, testenv.Echo, "203.0.113.9:0", "no rule names it, in any protocol"},
		{dropped, testenv.TCP, "169.254.169.254:80", "link-local is not special"},
		{passes, testenv.TCP, "[2001:db8:100::5]:80", "allow 2001:db8:100::/48"},
		{dropped, testenv.TCP, "[2001:db8:200::5]:80", "no rule names it"},
	} {
		p.try(p.container, t)
	}
}

func (p *play) inbound() {
	p.container.Serve(p, 8080)
	client := testenv.StartWorkload(p, p.world.Outside, nil)
	server := netip.AddrPortFrom(p.world.Addr4, 8080)
	conn := client.Connect(p, server)
	p.conn(conn, passes, "TCP from outside, to :8080", "an answer to whoever asked is no flow of its own")
	p.try(p.container, trial{dropped, testenv.TCP, "192.0.2.2:80", "the same peer, but the container begins"})
}

func (p *play) early() {
	for _, t := range []trial{
		{passes, testenv.TCP, "198.51.100.10:80", "the same policy, at another kind of target"},
		{refused, testenv.TCP, "203.0.113.9:80", "no need to wait for a timeout"},
		{refused, testenv.UDPConnected, "203.0.113.9:123", "nor guess what became of a datagram"},
		{refused, testenv.UDPSendto, "203.0.113.9:123", "connected or not"},
		{refused, testenv.TCP, "169.254.169.254:80", "no credentials for this one"},
	} {
		p.try(p.process, t)
	}
}

func (p *play) change() {
	cut := p.container.Connect(p, netip.MustParseAddrPort("198.51.100.10:80"))
	p.open = p.container.Connect(p, netip.MustParseAddrPort("198.51.100.20:80"))
	p.conn(cut, passes, "open: TCP 198.51.100.10:80", "allow 198.51.100.0/24")
	p.conn(p.open, passes, "open: TCP 198.51.100.20:80", "allow 198.51.100.0/24")

	prompt("echo '" + strings.TrimSuffix(denied, "\n") + "' >> agents.yaml")
	p.daemon.Policy(p, "agents.yaml", agents+denied)
	saved := time.Now()
	testenv.Eventually(p, "the changed policy", func() bool { return len(p.daemon.Show(p, p.containerID).Policy.Deny) == 2 })
	quote(fmt.Sprintf("in force %d ms later", time.Since(saved).Milliseconds()))

	p.conn(cut, dropped, "open: TCP 198.51.100.10:80", "deny 198.51.100.10, in the middle of the connection")
	p.conn(p.open, passes, "open: TCP 198.51.100.20:80", "nobody spoke of this one")
}

func (p *play) kill() {
	p.goOn()
	prompt(fmt.Sprintf("kill -9 %d", p.daemon.PID()))
	p.daemon.Kill(p)
	prompt("netfenced list")
	r := p.daemon.Run(p, "list")
	if r.Code != 1 {
		p.Errorf("netfenced list: exit code %d, though the daemon is dead", r.Code)
	}
	quote(r.Stderr)
	p.try(p.container, trial{passes, testenv.TCP, "198.51.100.20:80", "the kernel holds the rules,"})
	p.try(p.container, trial{dropped, testenv.TCP, "203.0.113.9:80", "and asks nobody"})
	p.try(p.process, trial{refused, testenv.TCP, "203.0.113.9:80", "for the process in the cgroup as well"})
	p.containerAsks(question{want: silent, name: "mirror.pypi.example", why: "names wait for it; nobody else is asked"})
	p.conn(p.open, passes, "open: TCP 198.51.100.20:80", "it has not noticed")
}

func (p *play) again() {
	p.start()
	p.run("list")
	p.run("policy", "show", p.containerID)
	p.try(p.container, trial{passes, testenv.TCP, "198.51.100.20:80", "found in the kernel and taken over,"})
	p.try(p.container, trial{dropped, testenv.TCP, "203.0.113.9:80", "without letting go"})
	p.containerAsks(question{want: resolves, name: "mirror.pypi.example", addr: "203.0.113.30", why: "names are answered again"})
	p.counted()
	p.nobodyAsked()

	p.run("detach", "--all")
	p.try(p.container, trial{passes, testenv.TCP, "203.0.113.9:80", "the filter is gone: somebody asked for that"})
	p.try(p.process, trial{passes, testenv.TCP, "203.0.113.9:80", "here too"})
	p.daemon.Stop(p)
	if _, err := os.Stat(p.daemon.Socket); !os.IsNotExist(err) {
		p.Errorf("%s is still there: %v", p.daemon.Socket, err)
	}
}

// counted looks whether the counters went on across the kill: what was dropped in chapter 3 is still counted.
func (p *play) counted() {
	shown := p.daemon.Show(p, p.containerID)
	if a := shown.Attachment; a.PacketsAllowed == 0 || shown.Drops["no-rule"] == 0 || shown.Drops["deny-rule"] == 0 {
		p.Errorf("counters %+v, %v", a, shown.Drops)
	}
}
