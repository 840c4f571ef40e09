// SPDX-License-Identifier: Apache-2.0

package localapi

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/netfence/netfence/internal/state"
	"github.com/netfence/netfence/internal/target"
	"github.com/netfence/netfence/policy"
)

// A directory stands for the cgroup and another for /proc.
func TestLook(t *testing.T) {
	cgroup, proc := t.TempDir(), t.TempDir()
	write := func(path, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	process := func(pid, capabilities string, namespace int) {
		t.Helper()
		write(filepath.Join(proc, pid, "status"), "Name:\tx\nCapEff:\t"+capabilities+"\n")
		if err := os.Mkdir(filepath.Join(proc, pid, "ns"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(fmt.Sprintf("net:[%d]", namespace), filepath.Join(proc, pid, "ns/net")); err != nil {
			t.Fatal(err)
		}
	}
	process("self", "000001ffffffffff", 1)
	process("10", "0000000000000000", 1)
	process("11", "0000000000001000", 1) // CAP_NET_ADMIN
	process("12", "0000000000002000", 2) // CAP_NET_RAW
	process("13", "0000000000000001", 2)
	write(filepath.Join(cgroup, "cgroup.procs"), "10\n11\n")
	write(filepath.Join(cgroup, "child/cgroup.procs"), "12\n13\n99\n") // the last has ended

	if got, want := look(cgroup, proc), (looked{escaping: 2, elsewhere: 2}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestWarningsAboutDNS(t *testing.T) {
	egress := target.Target{Type: target.Interface, Name: "eth0", Direction: target.Egress}
	ingress := target.Target{Type: target.Interface, Name: "eth0", Direction: target.Ingress}
	dropped := []string{"DNS of an egress attachment is not answered yet: port 53 is dropped"}
	for _, tt := range []struct {
		name   string
		target target.Target
		policy policy.Policy
		want   []string
	}{
		{"egress", egress, policy.Policy{Mode: policy.ModeAllowlist}, dropped},
		{"egress, addresses not filtered", egress, policy.Policy{Mode: policy.ModeDisabled, DNS: policy.DNS{Mode: policy.DNSDenylist}}, dropped},
		{"egress without DNS", egress, policy.Policy{Mode: policy.ModeAllowlist, DNS: policy.DNS{Mode: policy.DNSDisabled}}, nil},
		{"egress, everything dropped anyway", egress, policy.Policy{}, nil},
		{"ingress", ingress, policy.Policy{Mode: policy.ModeAllowlist}, nil},
	} {
		if got := warnings(state.Attachment{Target: tt.target, Policy: &tt.policy}); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}
