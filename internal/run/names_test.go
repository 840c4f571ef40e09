// SPDX-License-Identifier: Apache-2.0

package run

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/netfence/netfence/internal/testenv"
)

// fetch resolves a name, by a resolver that nobody runs, and connects to it.
var _ = testenv.NewFunc("fetch", func(args []string) error {
	ctx, cancel := context.WithTimeout(context.Background(), testenv.Patience)
	defer cancel()
	resolver := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, "9.9.9.9:53")
	}}
	addrs, err := resolver.LookupNetIP(ctx, "ip4", args[0])
	if err != nil {
		return err
	}
	conn, err := net.DialTimeout("tcp", net.JoinHostPort(addrs[0].String(), args[1]), time.Second)
	if err != nil {
		return err
	}
	return conn.Close()
})

// world has names, and somebody behind one of them.
func world(t *testing.T, b *bench) (port string, dns *testenv.Nameserver) {
	t.Helper()
	ns := testenv.NewNS(t)
	testenv.Veth(t,
		testenv.End{NS: testenv.Self(t), Name: "world0", Addrs: []netip.Prefix{netip.MustParsePrefix("203.0.113.1/24")}},
		testenv.End{NS: ns, Name: "eth0", Addrs: []netip.Prefix{netip.MustParsePrefix("203.0.113.5/24"), netip.MustParsePrefix("203.0.113.53/24")}},
	)
	dns = testenv.ServeDNS(t, ns, testenv.Zone{Records: []string{
		"allowed.example. 60 IN A 203.0.113.5", "refused.example. 60 IN A 203.0.113.6",
	}}, "203.0.113.53")
	l := ns.Listen(t, "tcp", "203.0.113.5:0")
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b.Upstreams = []string{"203.0.113.53"}
	return port, dns
}

func TestNames(t *testing.T) {
	b := newBench(t)
	port, dns := world(t, b)
	if got := b.sh(t, b.call(t, "fetch", "allowed.example", port)); got.code == 0 || dns.AskedFor("allowed.example.") != 0 {
		t.Errorf("without a rule: %+v", got)
	}
	b.Allow = []string{"allowed.example:" + port}
	if got := b.sh(t, b.call(t, "fetch", "allowed.example", port)); got.code != 0 {
		t.Errorf("with a rule: %+v", got)
	}
	got := b.sh(t, b.call(t, "dial", "203.0.113.5:"+port))
	if got.code == 0 {
		t.Errorf("by the address, which nothing taught: %+v", got)
	}
	b.Report = filepath.Join(b.dir, "report")
	got = b.sh(t, b.call(t, "fetch", "refused.example", port))
	if got.code == 0 || dns.AskedFor("refused.example.") != 0 || !strings.Contains(got.stderr, "× name refused.example\n") {
		t.Errorf("a name without a rule: %+v", got)
	}
	text, err := os.ReadFile(b.Report)
	if err != nil {
		t.Fatal(err)
	}
	var report Result
	if err := json.Unmarshal(text, &report); err != nil || len(report.DNSRefused) != 1 || report.DNSRefused[0].Name != "refused.example" {
		t.Errorf("%v: %s", err, text)
	}
}

func (o outcome) String() string {
	return fmt.Sprintf("exit code %d\n%s%s", o.code, o.stdout, o.stderr)
}
