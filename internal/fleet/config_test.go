// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestConfig(t *testing.T) {
	for text, want := range map[string]string{
		"":                                     "",
		"lisen: 127.0.0.1:1":                   "line 1: unknown key lisen",
		"api: {tls: {cert: x}}":                "unknown key cert",
		"listen: 0.0.0.0:7443":                 "would be plaintext on a network",
		"listen: 7443":                         `"7443" is not host:port`,
		"api: {listen: '192.0.2.1:7480'}":      "api.listen: 192.0.2.1:7480 would be plaintext",
		"listen: 0.0.0.0:7443\ninsecure: true": "",
		"listen: 0.0.0.0:7443\ntls: {cert_file: a, key_file: b}":                            "anybody could be one",
		"listen: 0.0.0.0:7443\ntls: {cert_file: a, key_file: b}\ndaemons: {tokens_file: c}": "",
		"listen: 0.0.0.0:7443\ninsecure: true\ndaemons: {tokens_file: c}":                   "tokens would travel in plaintext",
		"api: {listen: '192.0.2.1:7480', insecure: true, tokens_file: c}":                   "api.tokens_file: tokens would travel",
		"tls: {cert_file: a}":                                          "tls.cert_file: and key_file go together",
		"tls: {client_ca_file: a}":                                     "tls.client_ca_file: means nothing without",
		"tls: {cert_file: a, key_file: b, crl_file: c}":                "tls.crl_file: means nothing without",
		"daemons: {names: [a]}":                                        "no certificate would be asked for",
		"policies: dir://relative":                                     "not an absolute folder",
		"policies: /etc":                                               "neither dir:///PATH nor etcd://",
		"policies: etcd://127.0.0.1:2379":                              "no prefix",
		"policies: etcd://127.0.0.1/p":                                 `"127.0.0.1" is not host:port`,
		"policies: etcd://127.0.0.1:2379,[::1]:2379/netfence/policies": "",
		"policies: etcd://192.0.2.1:2379/p":                            "would be reached in plaintext",
		"policies: etcd://192.0.2.1:2379/p\netcd: {insecure: true}":    "",
		"policies: etcd://192.0.2.1:2379/p\netcd: {ca_file: a}":        "",
		"etcd: {user: a}":                                              "user: and password_file go together",
		"heartbeat: 5ms":                                               "heartbeat: below 1s",
		"default_policy: {mode: allowlist, dns: {mode: proxy}}":        "proxy needs a control plane that decides",
		"default_policy: {mode: allowlist, allow: [192.0.2.1/33]}":     "192.0.2.1/33",
		"default_policy: {mode: denylist}\nlog_level: debug\nheartbeat: 10s\naudit_file: /var/log/a": "",
	} {
		path := filepath.Join(t.TempDir(), "control.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Load(path)
		if (err == nil) != (want == "") || err != nil && (!strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n")) {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
	if _, err := Load("/nonexistent/control.yaml"); err == nil || !strings.Contains(err.Error(), "--help") {
		t.Errorf("no file: %v", err)
	}
}
