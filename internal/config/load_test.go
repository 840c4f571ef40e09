// SPDX-License-Identifier: Apache-2.0

package config

import (
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/netfence/netfence/policy"
)

func write(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestLoad(t *testing.T) {
	for _, test := range []struct {
		name    string
		file    string
		environ []string
		want    func(*Config)
	}{
		{name: "empty file"},
		{name: "comments only", file: "# nothing\n"},
		{name: "null section", file: "control_plane:\nmetadata:\n"},
		{
			name: "everything",
			file: `
socket: /run/a.sock
data_dir: /a/data/
run_dir: /a/run
bpf_dir: /sys/fs/bpf/a
log_level: debug
metadata: {region: eu, rack: 7}
daemon_id: node-1
control_plane:
  url: 192.0.2.1:9000
  insecure: true
  subscribe_ack_timeout: 0s
  attach_when_unreachable: pending
  on_disconnect: keep
default_policy:
  mode: allowlist
  allow: [10.0.0.0/8]
guard:
  deny: [169.254.0.0/16]
  allow: ["10.0.0.53:53"]
strict: true
limits: {attachments: 5, rules: 10, metadata_bytes: 100, flows: 7}
`,
			want: func(c *Config) {
				c.Socket, c.DataDir, c.RunDir, c.BPFDir = "/run/a.sock", "/a/data", "/a/run", "/sys/fs/bpf/a"
				c.LogLevel = slog.LevelDebug
				c.Metadata = map[string]string{"region": "eu", "rack": "7"}
				c.DaemonID = "node-1"
				c.ControlPlane = ControlPlane{
					URL: Endpoint{Addresses: []string{"192.0.2.1:9000"}}, Insecure: true, AttachWhenUnreachable: UnreachablePending, Heartbeat: 30 * time.Second,
				}
				c.DefaultPolicy = &policy.Policy{
					Mode: policy.ModeAllowlist, Allow: []policy.Rule{{Prefix: netip.MustParsePrefix("10.0.0.0/8")}},
				}
				c.Guard = &policy.Guard{
					Allow: []policy.Rule{{Prefix: netip.MustParsePrefix("10.0.0.53/32"), Ports: []policy.Ports{{First: 53, Last: 53}}}},
					Deny:  []policy.Rule{{Prefix: netip.MustParsePrefix("169.254.0.0/16")}},
				}
				c.Strict = true
				c.Limits.Attachments, c.Limits.Rules, c.Limits.MetadataBytes, c.Limits.Flows = 5, 10, 100, 7
			},
		},
		{
			name:    "environment over file",
			file:    "log_level: debug\nsocket: /run/a.sock\n",
			environ: []string{"NETFENCE_LOG_LEVEL=warn", "NETFENCE_SOCKET=", "HOME=/root"},
			want:    func(c *Config) { c.LogLevel, c.Socket = slog.LevelWarn, "/run/a.sock" },
		},
		{
			name: "environment alone",
			environ: []string{
				"NETFENCE_CONTROL_PLANE_URL=dir:///srv/policies",
				"NETFENCE_CONTROL_PLANE_SUBSCRIBE_ACK_TIMEOUT=250ms",
				"NETFENCE_METADATA=region=eu, note=a=b",
				"NETFENCE_GUARD={deny: [169.254.0.0/16]}", "NETFENCE_STRICT=true",
				"NETFENCE_DEFAULT_POLICY={mode: denylist, deny: [10.0.0.0/8], dns: {mode: disabled}}",
			},
			want: func(c *Config) {
				c.ControlPlane.URL = Endpoint{Dir: "/srv/policies"}
				c.ControlPlane.SubscribeAckTimeout = 250 * time.Millisecond
				c.Metadata = map[string]string{"region": "eu", "note": "a=b"}
				c.Guard = &policy.Guard{Deny: []policy.Rule{{Prefix: netip.MustParsePrefix("169.254.0.0/16")}}}
				c.Strict = true
				c.DefaultPolicy = &policy.Policy{
					Mode: policy.ModeDenylist, Deny: []policy.Rule{{Prefix: netip.MustParsePrefix("10.0.0.0/8")}},
					DNS: policy.DNS{Mode: policy.DNSDisabled},
				}
			},
		},
		{
			name: "a control plane elsewhere",
			file: `
socket_group: netfence
control_plane:
  url: [control-1.example:9000, control-2.example:9000]
  attach_when_unreachable: cached
  on_disconnect: {block: 10m}
  heartbeat_interval: 5s
  token_file: /etc/netfence/token
  tls: {ca_file: /etc/netfence/ca.pem, cert_file: /a.pem, key_file: /a.key, server_name: control.example, crl_file: /crl.pem}
`,
			want: func(c *Config) {
				c.SocketGroup = "netfence"
				c.ControlPlane = ControlPlane{
					URL:                 Endpoint{Addresses: []string{"control-1.example:9000", "control-2.example:9000"}},
					SubscribeAckTimeout: 5 * time.Second, AttachWhenUnreachable: UnreachableCached,
					BlockAfter: 10 * time.Minute, Heartbeat: 5 * time.Second, TokenFile: "/etc/netfence/token",
					TLS: TLS{
						CAFile: "/etc/netfence/ca.pem", CertFile: "/a.pem", KeyFile: "/a.key", ServerName: "control.example", CRLFile: "/crl.pem",
					},
				}
			},
		},
		{
			name: "a control plane elsewhere, by variables",
			environ: []string{
				"NETFENCE_CONTROL_PLANE_URL=a.example:1, b.example:2", "NETFENCE_CONTROL_PLANE_ON_DISCONNECT={block: 1m}",
				"NETFENCE_CONTROL_PLANE_TLS_SPIFFE_ID=spiffe://example.org/control",
			},
			want: func(c *Config) {
				c.ControlPlane.URL = Endpoint{Addresses: []string{"a.example:1", "b.example:2"}}
				c.ControlPlane.BlockAfter = time.Minute
				c.ControlPlane.TLS.SPIFFEID = "spiffe://example.org/control"
			},
		},
		{
			name: "published keys",
			file: `
control_plane: {url: localhost:9000}
dns: {listen_addr: 127.0.0.1, port_min: 11000, port_max: 11500, upstream: 192.0.2.53}
`,
			want: func(c *Config) {
				c.ControlPlane.URL = Endpoint{Addresses: []string{"localhost:9000"}}
				c.DNS.Upstreams = []netip.AddrPort{netip.MustParseAddrPort("192.0.2.53:53")}
				c.Warnings = []string{
					"dns.listen_addr is ignored: this daemon needs no DNS address or port range",
					"dns.port_min is ignored: this daemon needs no DNS address or port range",
					"dns.port_max is ignored: this daemon needs no DNS address or port range",
				}
			},
		},
		{
			name: "dns, events, metrics",
			file: `
dns:
  upstream: [192.0.2.53, "[2001:db8::53]:5353"]
  forward: [{zone: cluster.local, to: [10.96.0.10]}, {zone: corp, to: ["2001:db8::1"]}]
  min_ttl: 10s
  max_ttl: 20s
  grace: 1s
  max_flow: 2h/1h
  refuse_with: refused
  allow_private_answers: true
  cache_bytes: 0
  serve_stale: 24h
events: {rate: 5/s}
metrics: {listen: "127.0.0.1:9100", per_attachment: true}
`,
			want: func(c *Config) {
				c.DNS = DNS{
					Upstreams: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.53:53"), netip.MustParseAddrPort("[2001:db8::53]:5353")},
					Forward: []policy.ZoneForward{
						{Zone: "cluster.local", To: []netip.AddrPort{netip.MustParseAddrPort("10.96.0.10:53")}},
						{Zone: "corp", To: []netip.AddrPort{netip.MustParseAddrPort("[2001:db8::1]:53")}},
					},
					MinTTL: 10 * time.Second, MaxTTL: 20 * time.Second, Grace: time.Second,
					MaxFlowTCP: 2 * time.Hour, MaxFlowOther: time.Hour,
					RefuseWith: policy.RefuseRefused, AllowPrivateAnswers: true,
					ServeStale: 24 * time.Hour,
				}
				c.Events.Rate = 5
				c.Metrics = Metrics{Listen: "127.0.0.1:9100", PerAttachment: true}
			},
		},
		{
			name:    "an unknown variable is no error",
			environ: []string{"NETFENCE_PORT=tcp://10.0.0.1:80", "NETFENCE_LOG_LEVLE=debug"},
			want: func(c *Config) {
				c.Warnings = []string{
					"environment: unknown NETFENCE_LOG_LEVLE (did you mean NETFENCE_LOG_LEVEL?)",
					"environment: unknown NETFENCE_PORT",
				}
			},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := Load(write(t, test.file), test.environ)
			if err != nil {
				t.Fatal(err)
			}
			want := Default()
			if test.want != nil {
				test.want(want)
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
		})
	}
}

func TestLoadRefuses(t *testing.T) {
	for _, test := range []struct {
		file, environ, want string
	}{
		{file: "log_levle: debug", want: "line 1: unknown key log_levle (did you mean log_level?)"},
		{file: "control_plane:\n  ulr: a:1", want: "line 2: unknown key control_plane.ulr (did you mean control_plane.url?)"},
		{file: "policies: []", want: "line 1: unknown key policies"},
		{file: "socket: /a\nsocket: /b", want: "line 2: socket is there twice"},
		{file: "socket: [a]", want: "line 1: socket: is not a single value"},
		{file: "socket: run/a.sock", want: `line 1: socket: "run/a.sock" is not an absolute path`},
		{file: "socket: /" + strings.Repeat("a", 120), want: "line 1: socket: path of 121 bytes is longer than 107"},
		{file: "log_level: loud", want: `line 1: log_level: "loud" is none of debug, info, warn, error`},
		{file: "metadata: [a]", want: "line 1: metadata: is not a mapping of names to values"},
		{file: "metadata: {a: 1, a: 2}", want: "line 1: metadata: a is there twice"},
		{file: "metadata: {'': 1}", want: "metadata: a name is empty"},
		{file: "metadata: {a: xxxxxxxxxx}\nlimits: {metadata_bytes: 10}", want: "metadata: 11 bytes are more than limits.metadata_bytes, 10"},
		{file: "daemon_id: a b", want: `line 1: daemon_id: "a b" is not 1 to 128 printable ASCII characters without spaces`},
		{file: "control_plane: dir:///a", want: "line 1: control_plane is not a mapping"},
		{file: "control_plane: {url: 'https://a'}", want: `line 1: control_plane.url: "https://a" is neither host:port nor dir:///path`},
		{file: "control_plane: {url: 'dir://policies'}", want: `"dir://policies" is not an absolute folder`},
		{file: "control_plane: {url: 'a:0'}", want: `"a:0" has no port between 1 and 65535`},
		{file: "control_plane: {url: ''}", want: "line 1: control_plane.url: empty"},
		{file: "control_plane: {subscribe_ack_timeout: 5}", want: `line 1: control_plane.subscribe_ack_timeout: "5" has no unit (write 5s)`},
		{file: "control_plane: {subscribe_ack_timeout: -5s}", want: `"-5s" is negative`},
		{file: "control_plane: {on_disconnect: open}", want: "on_disconnect: is neither keep nor {block: 10m}"},
		{file: "control_plane: {on_disconnect: {block: 0s}}", want: "on_disconnect: block: 0s is not between 1s and 720h0m0s"},
		{file: "control_plane: {on_disconnect: {open: 1m}}", want: "on_disconnect: is neither keep nor {block: 10m}"},
		{file: "control_plane: {attach_when_unreachable: open}", want: `"open" is none of fail, cached, pending`},
		{file: "control_plane: {url: [a:1, b]}", want: `"b" is neither host:port`},
		{file: "control_plane: {url: [a:1, 'dir:///b']}", want: `"dir:///b" is neither host:port`},
		{file: "control_plane: {heartbeat_interval: 1ms}", want: "heartbeat_interval: 1ms is not between 1s and 10m0s"},
		{file: "control_plane: {url: a:1, tls: {spiffe_id: 'https://a'}}", want: `"https://a" is not spiffe://DOMAIN/PATH`},
		{file: "control_plane: {url: a:1, tls: {cert_file: /a}}", want: "control_plane.tls: cert_file and key_file go together"},
		{file: "control_plane: {url: a:1, tls: {server_name: a, spiffe_id: 'spiffe://a/b'}}", want: "control_plane.tls: server_name and spiffe_id exclude each other"},
		{file: "control_plane: {url: a:1, insecure: true, tls: {ca_file: /a}}", want: "control_plane.insecure: plaintext is asked for, and tls too"},
		{file: "control_plane: {url: a:1, insecure: true, token_file: /a}", want: "control_plane.token_file: the token would be sent in plaintext"},
		{file: "control_plane: {token_file: /a}", want: "control_plane.url: dir:///etc/netfence/policies is in this process"},
		{file: "control_plane: {tls: {ca_flie: /a}}", want: "unknown key control_plane.tls.ca_flie (did you mean control_plane.tls.ca_file?)"},
		{file: "guard: {deny: [10.0.0.1/8]}", want: "line 1: guard: line 1: deny rule 1: prefix 10.0.0.1/8 has host bits set; did you mean 10.0.0.0/8?"},
		{file: "guard: {deny: [metadata.internal]}", want: "deny rule 1: metadata.internal is a name; a guard holds addresses (names are a policy's)"},
		{file: "guard: {deny: [{cidr: 10.0.0.0/8, ttl: 1m}]}", want: "guard deny rule 1: 10.0.0.0/8: a guard rule has no lifetime (leave ttl and expires_at out)"},
		{file: "guard: {mode: denylist}", want: `unknown key "mode"`},
		{file: "guard: [10.0.0.0/8]", want: "expected a mapping, found a list"},
		{file: "strict: maybe", want: `line 1: strict: "maybe" is neither true nor false`},
		{file: "strict: yes", want: `line 1: strict: "yes" is neither true nor false`},
		{file: "default_policy: {mode: allowlist, allow: [10.0.0.1/8]}", want: "allow rule 1: prefix 10.0.0.1/8 has host bits set; did you mean 10.0.0.0/8?"},
		{file: "default_policy: {mode: allowlist, match: {a: b}}", want: `unknown key "match"`},
		{file: "default_policy: {mode: allowlist, dns: {mode: proxy}}", want: "dns mode proxy needs a control plane"},
		{file: "default_policy: {mode: allowlist, allow: [10.0.0.0/8, 11.0.0.0/8]}\nlimits: {rules: 1}", want: "default_policy: rules: 2 rules, at most 1 (limits.rules)"},
		{file: "limits: {rules: 0}", want: `"0" is not a number between 1 and 1048576`},
		{file: "limits: {rules: many}", want: `"many" is not a number between 1 and 1048576`},
		{file: "dns: {upstream: [nowhere]}", want: "dns.upstream: server \"nowhere\" is not an address"},
		{file: "dns: {forward: [{zone: a}]}", want: "dns.forward:"},
		{file: "dns: {min_ttl: 2h}", want: "dns.min_ttl: 2h0m0s is more than dns.max_ttl, 1h0m0s"},
		{file: "dns: {grace: 0s}", want: "line 1: dns.grace: 0s is not between 1s and 720h0m0s"},
		{file: "dns: {max_ttl: 721h}", want: "dns.max_ttl: 721h0m0s is not between 1s and 720h0m0s"},
		{file: "dns: {max_flow: 24h/0s}", want: "dns.max_flow: 0s is not between 1s and 720h0m0s"},
		{file: "dns: {cache_bytes: -1}", want: `dns.cache_bytes: "-1" is not a number between 0 (nothing is kept) and 1073741824`},
		{file: "dns: {cache_bytes: 32M}", want: `dns.cache_bytes: "32M" is not a number`},
		{file: "dns: {serve_stale: 0s}", want: "dns.serve_stale: 0s is not between 1s and 720h0m0s"},
		{file: "dns: {refuse_with: default}", want: "dns.refuse_with: this is where the default is set (nxdomain or refused)"},
		{file: "dns: {refuse_with: servfail}", want: `refuse_with "servfail": unknown`},
		{file: "metrics: {listen: 9100}", want: `"9100" is neither off nor host:port`},
		{file: "a: 1\n---\nb: 2", want: "more than one YAML document"},
		{file: "[]", want: "line 1: the file is not a mapping"},
		{file: "a: b: c", want: "mapping values are not allowed"},
		{file: "#" + strings.Repeat("a", maxFileBytes), want: "larger than 1048576 bytes"},
		{environ: "NETFENCE_LOG_LEVEL=loud", want: `environment NETFENCE_LOG_LEVEL: "loud" is none of debug, info, warn, error`},
		{environ: "NETFENCE_GUARD={deny: [x]}", want: "environment NETFENCE_GUARD: line 1: deny rule 1: x is a name"},
		{environ: "NETFENCE_GUARD_DENY=10.0.0.0/8", want: "environment NETFENCE_GUARD_DENY: unknown (one variable has it all, NETFENCE_GUARD='{deny: [169.254.0.0/16]}')"},
		{environ: "NETFENCE_CONTROL_PLANE_TLS_CA_FIL=/a", want: "environment NETFENCE_CONTROL_PLANE_TLS_CA_FIL: unknown (did you mean NETFENCE_CONTROL_PLANE_TLS_CA_FILE?)"},
		{environ: "NETFENCE_METADATA=a", want: `environment NETFENCE_METADATA: "a" is not name=value`},
	} {
		t.Run(test.want, func(t *testing.T) {
			path := write(t, test.file)
			_, err := Load(path, []string{test.environ})
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("got %v, want %s", err, test.want)
			}
			if test.environ == "" && !strings.HasPrefix(err.Error(), "config "+path+": ") {
				t.Errorf("%v does not name the file", err)
			}
		})
	}
}

func TestLoadFiles(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "none.yaml")
	if _, err := Load(missing, nil); err == nil || err.Error() != "config "+missing+": no such file or directory" {
		t.Errorf("a named file that is missing: %v", err)
	}
	if _, err := os.Stat(DefaultPath); err == nil {
		t.Logf("%s exists on this machine, so that its absence is not tested", DefaultPath)
		return
	}
	got, err := Load("", nil)
	if err != nil || !reflect.DeepEqual(got, Default()) {
		t.Errorf("without a file: %+v, %v", got, err)
	}
}

func TestSocket(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "none.yaml")
	for _, test := range []struct {
		name, path string
		environ    []string
		want       string
	}{
		{"nothing set", missing, nil, DefaultSocket},
		{"file", write(t, "socket: /run/a.sock\nno_such_key: 1\n"), nil, "/run/a.sock"},
		{"file without the key", write(t, "log_level: info\n"), nil, DefaultSocket},
		{"environment", write(t, "socket: /run/a.sock\n"), []string{"NETFENCE_SOCKET=/run/b.sock"}, "/run/b.sock"},
	} {
		got, err := socket(test.path, test.environ)
		if err != nil || got != test.want {
			t.Errorf("%s: got %q, %v; want %q", test.name, got, err, test.want)
		}
	}
	if _, err := socket(write(t, "a: b: c"), nil); err == nil {
		t.Error("a broken file decides nothing, and that is no error")
	}
}

func TestEveryKeyHasItsVariable(t *testing.T) {
	seen := make(map[string]string)
	for _, k := range keys {
		if other, ok := seen[k.env()]; ok {
			t.Errorf("%s is the variable of %s and of %s", k.env(), other, k.name)
		}
		seen[k.env()] = k.name
		if _, ok := keyByName(k.name + ".x"); ok || isSection(k.name) {
			t.Errorf("%s is a key and a section", k.name)
		}
	}
}

func TestEndpointLoopback(t *testing.T) {
	for address, want := range map[string]bool{
		"localhost:1": true, "127.0.0.1:1": true, "127.9.9.9:1": true, "[::1]:1": true, "[::ffff:127.0.0.1]:1": true,
		"192.0.2.1:1": false, "example.org:1": false, "localhost.example.org:1": false, "[2001:db8::1]:1": false,
	} {
		if got := (Endpoint{Addresses: []string{"127.0.0.1:1", address}}).Loopback(); got != want {
			t.Errorf("%s: %v, want %v", address, got, want)
		}
	}
}

// Whether policies may travel in plaintext is not decided by leaving something out.
func TestEncrypted(t *testing.T) {
	for file, want := range map[string]bool{
		"url: 192.0.2.1:1": true, "url: a.example:1": true, "url: [127.0.0.1:1, a.example:1]": true,
		"url: 127.0.0.1:1": false, "url: localhost:1": false, "url: [127.0.0.1:1, '[::1]:1']": false,
		"url: 127.0.0.1:1, tls: {ca_file: /a}": true, "url: a.example:1, insecure: true": false,
	} {
		c, err := Load(write(t, "control_plane: {"+file+"}"), nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := c.ControlPlane.Encrypted(); got != want {
			t.Errorf("%s: %v, want %v", file, got, want)
		}
	}
}
