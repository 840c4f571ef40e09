// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/netfence/netfence/controlplane/controlplanetest"
	"github.com/netfence/netfence/policy"
)

const (
	acme  = "match: {tenant: acme}\nmode: allowlist\nallow: [192.0.2.1]\n"
	acme2 = "match: {tenant: acme}\nmode: allowlist\nallow: [192.0.2.2]\n"
)

// TestFolder: the files of a folder reach daemons, are seen by administrators, and a broken one changes nothing.
func TestFolder(t *testing.T) {
	s := serve(t, "audit_file: '{dir}/audit'", func(dir string) {
		if err := os.WriteFile(filepath.Join(dir, "policies", "acme.yaml"), []byte(acme), 0o600); err != nil {
			t.Fatal(err)
		}
	})
	d := controlplanetest.Connect(t, s.dial(nil), controlplanetest.Config{ID: "host-1", Hostname: "one"})
	id := d.Attach(t, "veth0", map[string]string{"tenant": "acme"})
	other := d.Attach(t, "veth1", nil)
	d.WaitPolicy(t, id, allows("192.0.2.1/32"))
	d.WaitPolicy(t, other, func(p *policy.Policy) bool { return p.Mode == policy.ModeBlockAll })

	s.write("policies/acme.yaml", acme2)
	d.WaitPolicy(t, id, allows("192.0.2.2/32"))

	s.write("policies/acme.yaml", "mode: alowlist\n")
	eventually(t, "the broken file is reported", func() bool {
		policies := list[policyRecord](s, "/v1/policies")
		return len(policies) == 1 && strings.Contains(policies[0].Error, "alowlist")
	})
	if !allows("192.0.2.2/32")(d.Policy(id)) {
		t.Error("a broken file changed what is in force")
	}
	later := d.Attach(t, "veth2", map[string]string{"tenant": "acme"})
	d.WaitPolicy(t, later, allows("192.0.2.2/32"))
	if r := s.request("", "GET", "/readyz", ""); r.StatusCode != http.StatusOK {
		t.Errorf("the last good state decides, so the server is ready: %v", r)
	}

	daemons := list[daemonRecord](s, "/v1/daemons")
	if len(daemons) != 1 || daemons[0].ID != "host-1" || daemons[0].Hostname != "one" || !daemons[0].Connected || daemons[0].Attachments != 3 {
		t.Errorf("daemons: %+v", daemons)
	}
	attachments := list[attachmentRecord](s, "/v1/attachments?metadata=tenant=acme&daemon=host-1")
	if len(attachments) != 2 || attachments[0].Policy != "acme.yaml" || attachments[0].Status != "applied" {
		t.Errorf("attachments: %+v", attachments)
	}
	audit, err := os.ReadFile(filepath.Join(s.dir, "audit"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"what":"seen","policy":"acme.yaml","old_revision":""`, `"outcome":"broken","reason":"policy acme.yaml`} {
		if !strings.Contains(string(audit), want) {
			t.Errorf("the audit log lacks %s:\n%s", want, audit)
		}
	}
	if r := s.request(s.admin, "PUT", "/v1/policies/acme.yaml", acme, "If-Match", "*"); r.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("a folder is written by who may write there: %v", r)
	}
	if r := s.request(s.admin, "GET", "/v1/policies/acme.yaml", ""); string(r.body) != "mode: alowlist\n" || r.Header.Get("ETag") == "" {
		t.Errorf("get: %v", r)
	}
}

// TestBrokenFromTheStart: nobody knows what such a file decides, so nothing new is decided in its place.
func TestBrokenFromTheStart(t *testing.T) {
	s := serve(t, "", func(dir string) {
		if err := os.WriteFile(filepath.Join(dir, "policies", "a.yaml"), []byte("mode: nonsense\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	})
	eventually(t, "it is not ready", func() bool {
		r := s.request("", "GET", "/readyz", "")
		return r.StatusCode == http.StatusServiceUnavailable && strings.Contains(string(r.body), "a.yaml")
	})
	d := controlplanetest.Connect(t, s.dial(nil), controlplanetest.Config{ID: "host-1"})
	id := d.Subscribe("veth0", map[string]string{"tenant": "acme"})
	eventually(t, "the attachment is known", func() bool {
		list := list[attachmentRecord](s, "/v1/attachments")
		return len(list) == 1 && list[0].Status == "undecided"
	})
	if commands := d.Commands(); commands["subscribed_ack"] != 0 {
		t.Errorf("it was decided about: %v", commands)
	}
	s.write("policies/a.yaml", acme)
	d.WaitPolicy(t, id, allows("192.0.2.1/32"))
}

// TestRefused: what a daemon does not put in force is seen, and counted.
func TestRefused(t *testing.T) {
	s := serve(t, "")
	s.write("policies/acme.yaml", acme)
	d := controlplanetest.Connect(t, s.dial(nil), controlplanetest.Config{ID: "host-1"})
	id := d.Attach(t, "veth0", map[string]string{"tenant": "acme"})
	d.WaitPolicy(t, id, allows("192.0.2.1/32"))
	d.Refuse(func(string, *policy.Policy) error { return errors.New("no room in the kernel") })
	s.write("policies/acme.yaml", acme2)
	eventually(t, "the refusal is listed", func() bool {
		refused := list[refusalRecord](s, "/v1/refusals")
		return len(refused) == 1 && refused[0].ID == id && refused[0].Policy == "acme.yaml" &&
			strings.Contains(refused[0].Error, "no room in the kernel")
	})
	r := s.request(s.reader, "GET", "/metrics", "")
	for _, want := range []string{
		"netfence_control_refusals_total 1\n", `netfence_control_daemons{state="connected"} 1`, "netfence_control_attachments 1\n",
		"netfence_control_ready 1\n", `netfence_control_build_info{version="test"} 1`,
	} {
		if !strings.Contains(string(r.body), want) {
			t.Errorf("metrics lack %s", want)
		}
	}
}
