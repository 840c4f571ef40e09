// SPDX-License-Identifier: Apache-2.0

package dnsproxy

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/goleak"

	"github.com/netfence/netfence/internal/datapath"
	"github.com/netfence/netfence/internal/events"
	"github.com/netfence/netfence/policy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// kernel stands for the datapath: it remembers what it was taught. So these
// tests show what the server asks of the kernel, not that any packet is judged.
type kernel struct {
	mu      sync.Mutex
	chains  map[uint32][]datapath.Member
	refuse  func() error // nil: takes everything
	lessons []datapath.Lesson
	learned map[netip.Addr]bool
	mtu     int
	held    map[uint32]chan struct{} // who waits to learn for an index waits for this

	original func(datapath.CgroupQuery) (netip.AddrPort, error) // nil: must not be called
}

func (k *kernel) Original(q datapath.CgroupQuery) (netip.AddrPort, error) { return k.original(q) }

func (k *kernel) Chain(index uint32) []datapath.Member {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.chains[index]
}

func (k *kernel) Learn(lessons []datapath.Lesson, wait bool) error {
	k.mu.Lock()
	refuse, held := k.refuse, k.held[lessons[0].Member.Index]
	k.mu.Unlock()
	if held != nil && !wait {
		return datapath.ErrBusy
	}
	if held != nil {
		<-held
	}
	if refuse != nil {
		if err := refuse(); err != nil {
			return err
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.lessons = append(k.lessons, lessons...)
	for _, l := range lessons {
		for _, a := range l.Addrs {
			if k.learned == nil {
				k.learned = map[netip.Addr]bool{}
			}
			k.learned[a] = true
		}
	}
	return nil
}

func (k *kernel) MTU(uint32) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.mtu, nil
}

// set puts policies in force for index, innermost first; their ids are a, b, c …
func (k *kernel) set(t testing.TB, index uint32, policies ...policy.Policy) {
	t.Helper()
	var chain []datapath.Member
	for i := range policies {
		compiled, err := policies[i].Compile()
		if err != nil {
			t.Fatal(err)
		}
		chain = append(chain, datapath.Member{ID: string(rune('a' + i)), Index: index + uint32(i), Names: compiled.Names})
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.chains == nil {
		k.chains = map[uint32][]datapath.Member{}
	}
	for i := range chain {
		k.chains[index+uint32(i)] = chain[i:]
	}
}

func (k *kernel) forget(index uint32) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.chains, index)
}

func (k *kernel) refusing(refuse func() error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.refuse = refuse
}

// replacing has index be busy until done is closed.
func (k *kernel) replacing(index uint32, done chan struct{}) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.held = map[uint32]chan struct{}{index: done}
}

func (k *kernel) taught() []datapath.Lesson {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.lessons)
}

func allowlist(domains ...string) policy.Policy {
	return policy.Policy{Mode: policy.ModeAllowlist, DNS: policy.DNS{Mode: policy.DNSAllowlist, Allow: rules(domains...)}}
}

func denylist(domains ...string) policy.Policy {
	return policy.Policy{Mode: policy.ModeAllowlist, DNS: policy.DNS{Mode: policy.DNSDenylist, Deny: rules(domains...)}}
}

func rules(domains ...string) []policy.DomainRule {
	var all []policy.DomainRule
	for _, d := range domains {
		all = append(all, policy.DomainRule{Domain: d, Force: true})
	}
	return all
}

var (
	byProxy = policy.Policy{Mode: policy.ModeAllowlist, DNS: policy.DNS{Mode: policy.DNSProxy}}
	without = policy.Policy{Mode: policy.ModeAllowlist, DNS: policy.DNS{Mode: policy.DNSDisabled}}
)

// resolver is an upstream on loopback, over UDP and TCP at one port.
type resolver struct {
	addr netip.AddrPort

	mu    sync.Mutex
	asked []*dns.Msg
}

// resolve starts a resolver that answers as answer does; nil: not at all.
func resolve(t testing.TB, answer func(q *dns.Msg, network string) *dns.Msg) *resolver {
	t.Helper()
	r := &resolver{}
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		r.mu.Lock()
		r.asked = append(r.asked, q.Copy())
		r.mu.Unlock()
		if m := answer(q, w.LocalAddr().Network()); m != nil {
			_ = w.WriteMsg(m) // a test that misses it says so
		}
	})
	pc, l := samePort(t)
	r.addr = netip.MustParseAddrPort(pc.LocalAddr().String())
	for _, s := range []*dns.Server{{PacketConn: pc, Handler: handler}, {Listener: l, Handler: handler}} {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		var running sync.WaitGroup
		running.Go(func() {
			if err := s.ActivateAndServe(); err != nil && !errors.Is(err, net.ErrClosed) {
				t.Error(err)
			}
		})
		<-started
		t.Cleanup(func() {
			if err := s.Shutdown(); err != nil {
				t.Error(err)
			}
			running.Wait()
		})
	}
	return r
}

// samePort opens UDP and TCP on one free port of 127.0.0.1.
func samePort(t testing.TB) (net.PacketConn, net.Listener) {
	t.Helper()
	for range 20 {
		pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("tcp4", pc.LocalAddr().String())
		if err == nil {
			return pc, l
		}
		pc.Close()
	}
	t.Fatal("no port is free for both UDP and TCP")
	return nil, nil
}

func (r *resolver) queries() []*dns.Msg {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.asked)
}

// records is an answer that holds them in its answer section. $ is the name asked.
func records(t testing.TB, lines ...string) func(*dns.Msg, string) *dns.Msg {
	return func(q *dns.Msg, _ string) *dns.Msg {
		m := new(dns.Msg)
		m.SetReply(q)
		m.Answer = parseRecords(t, q.Question[0].Name, lines...)
		return m
	}
}

func parseRecords(t testing.TB, name string, lines ...string) []dns.RR {
	t.Helper()
	var all []dns.RR
	for _, line := range lines {
		if line[0] == '$' {
			line = name + line[1:]
		}
		rr, err := dns.NewRR(line)
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		all = append(all, rr)
	}
	return all
}

// world is a server that serves one attachment's sockets.
type world struct {
	*Server
	kernel *kernel
	addr   string

	mu     sync.Mutex
	events []events.Event
}

const index = 7

// noAddrs are the addresses of a host that has none of those that tests answer
// with. The one that they run on may.
func noAddrs() ([]netip.Addr, error) { return nil, nil }

// unhurried is serve for who counts what servers are asked: none is asked again because it was slow.
func unhurried(t testing.TB, o Options, upstreams []*resolver, policies ...policy.Policy) *world {
	t.Helper()
	o.Timeout = time.Minute
	if o.TryTimeout == 0 {
		o.TryTimeout = time.Minute
	}
	w := serve(t, o, upstreams, policies...)
	w.up.least = time.Minute
	return w
}

// serve starts a server in front of upstreams for an attachment under a chain
// of policies.
func serve(t testing.TB, o Options, upstreams []*resolver, policies ...policy.Policy) *world {
	t.Helper()
	w := &world{kernel: &kernel{}}
	w.kernel.set(t, index, policies...)
	o.Kernel = w.kernel
	if o.Upstreams == nil {
		var servers []netip.AddrPort
		for _, u := range upstreams {
			servers = append(servers, u.addr)
		}
		o.Upstreams = func() ([]netip.AddrPort, error) { return servers, nil }
	}
	if o.HostAddrs == nil {
		o.HostAddrs = noAddrs
	}
	if o.Timeout == 0 {
		o.Timeout = 3 * time.Second
	}
	if o.TryTimeout == 0 {
		o.TryTimeout = 300 * time.Millisecond
	}
	o.Events = func(e events.Event) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.events = append(w.events, e)
	}
	o.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	var err error
	if w.Server, err = New(o); err != nil {
		t.Fatal(err)
	}
	pc, l := samePort(t)
	w.addr = pc.LocalAddr().String()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := w.Serve(ctx, newDatagrams(t, pc, index)); err != nil {
			t.Error(err)
		}
	})
	running.Go(func() {
		if err := w.ServeTCP(ctx, connections{l, index}); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); running.Wait() })
	return w
}

// handle answers a message that takes nobody's place.
func (w *world) handle(ctx context.Context, b []byte, from Peer, stream bool) []byte {
	return w.Server.handle(ctx, b, from, stream, func() {})
}

func (w *world) seen() []events.Event {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.events)
}

// decision returns the only decision that was told.
func (w *world) decision(t testing.TB) events.DNSDecision {
	t.Helper()
	seen := w.seen()
	if len(seen) != 1 || seen[0].Decision == nil {
		t.Fatalf("%d events, want one decision: %+v", len(seen), seen)
	}
	return *seen[0].Decision
}

// question is a query with EDNS, as of today's resolvers.
func questionFor(name string, qtype uint16) *dns.Msg {
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(name), qtype)
	m.SetEdns0(ednsBytes, false)
	return m
}

// ask sends one query over UDP.
func (w *world) ask(t testing.TB, name string, qtype uint16) *dns.Msg {
	t.Helper()
	return w.exchangeWith(t, "udp", questionFor(name, qtype))
}

func (w *world) exchangeWith(t testing.TB, network string, q *dns.Msg) *dns.Msg {
	t.Helper()
	c := dns.Client{Net: network, Timeout: 10 * time.Second, UDPSize: dns.MaxMsgSize}
	m, _, err := c.Exchange(q, w.addr)
	if err != nil {
		t.Fatalf("%s %s: %v", network, q.Question[0].Name, err)
	}
	if m.Id != q.Id || !m.Response || len(m.Question) != 1 || m.Question[0] != q.Question[0] {
		t.Fatalf("asked %v, answered %v", q, m)
	}
	return m
}

// explained returns the code and the text of the Extended DNS Error in m.
func explained(m *dns.Msg) (code uint16, text string) {
	if opt := m.IsEdns0(); opt != nil {
		for _, o := range opt.Option {
			if e, ok := o.(*dns.EDNS0_EDE); ok {
				return e.InfoCode, e.ExtraText
			}
		}
	}
	return 0, ""
}

// rdata lists what the records of an answer hold.
func rdata(rrs []dns.RR) []string {
	all := []string{}
	for _, rr := range rrs {
		all = append(all, rr.String()[len(rr.Header().String()):])
	}
	return all
}

func addrs(all ...string) []netip.Addr {
	var parsed []netip.Addr
	for _, s := range all {
		parsed = append(parsed, netip.MustParseAddr(s))
	}
	return parsed
}
