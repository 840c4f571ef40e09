// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/netfence/netfence/policy"
)

// DefaultPath is the file that is read when none is named.
const DefaultPath = "/etc/netfence/control.yaml"

// Config is what a server runs with. Paths are read again when what lies there changes.
type Config struct {
	Listen   string        `yaml:"listen"`   // for daemons, gRPC
	Insecure bool          `yaml:"insecure"` // plaintext, or daemons without credentials, beyond loopback
	TLS      TLS           `yaml:"tls"`
	Daemons  DaemonAccess  `yaml:"daemons"`
	Policies Place         `yaml:"policies"`
	Etcd     Etcd          `yaml:"etcd"`
	API      API           `yaml:"api"`
	Audit    string        `yaml:"audit_file"` // empty: among the log
	LogLevel slog.Level    `yaml:"log_level"`
	Beat     time.Duration `yaml:"heartbeat"` // of daemons; 0: their own
	// DefaultPolicy applies to an attachment that no policy file matches. Nil: block-all.
	DefaultPolicy *policy.Policy `yaml:"default_policy"`
}

// TLS of a listener. ClientCAFile makes clients show a certificate.
type TLS struct {
	CertFile     string `yaml:"cert_file"`
	KeyFile      string `yaml:"key_file"`
	ClientCAFile string `yaml:"client_ca_file"`
	CRLFile      string `yaml:"crl_file"` // of the client CA
}

// DaemonAccess says who is a daemon: either is enough.
type DaemonAccess struct {
	TokensFile string `yaml:"tokens_file"`
	// Names are of certificates, DNS names or URIs; {daemon_id} stands for what the daemon says that it is.
	Names []string `yaml:"names"`
}

// API is the administrators' listener.
type API struct {
	Listen     string `yaml:"listen"`
	Insecure   bool   `yaml:"insecure"` // plaintext beyond loopback
	TLS        TLS    `yaml:"tls"`
	TokensFile string `yaml:"tokens_file"`
}

// Etcd is how its members are reached.
type Etcd struct {
	CAFile       string `yaml:"ca_file"` // of the members; any of the TLS files: not in plaintext
	CertFile     string `yaml:"cert_file"`
	KeyFile      string `yaml:"key_file"`
	User         string `yaml:"user"`
	PasswordFile string `yaml:"password_file"`
	Insecure     bool   `yaml:"insecure"` // plaintext beyond loopback
}

// Place is where policies are: a folder or a prefix in etcd.
type Place struct {
	Dir       string
	Endpoints []string // host:port of members
	Prefix    string   // begins and ends with "/"
}

// UnmarshalText reads dir:///PATH or etcd://HOST:PORT,HOST:PORT/PREFIX.
func (p *Place) UnmarshalText(text []byte) error {
	s := string(text)
	if dir, ok := strings.CutPrefix(s, "dir://"); ok {
		if !filepath.IsAbs(dir) {
			return fmt.Errorf("policies: %q is not an absolute folder (write dir:///etc/netfence/policies)", s)
		}
		*p = Place{Dir: filepath.Clean(dir)}
		return nil
	}
	rest, ok := strings.CutPrefix(s, "etcd://")
	members, prefix, _ := strings.Cut(rest, "/")
	if !ok || members == "" {
		return fmt.Errorf("policies: %q is neither dir:///PATH nor etcd://HOST:PORT,HOST:PORT/PREFIX", s)
	}
	*p = Place{Endpoints: strings.Split(members, ","), Prefix: "/" + strings.Trim(prefix, "/") + "/"}
	for _, member := range p.Endpoints {
		if err := checkAddress(member); err != nil {
			return fmt.Errorf("policies: member %w", err)
		}
	}
	if p.Prefix == "//" {
		return errors.New("policies: no prefix (write etcd://HOST:PORT/netfence/policies)")
	}
	return nil
}

// Load reads a configuration file. Its error is one line, and names the file.
func Load(path string) (*Config, error) {
	if path == "" {
		path = DefaultPath
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("config %s: %v (see `netfence-control serve --help`)", path, plain(err))
	}
	c := &Config{
		Listen:   "127.0.0.1:7443",
		Policies: Place{Dir: "/etc/netfence/policies"},
		API:      API{Listen: "127.0.0.1:7480"},
	}
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	decoder.KnownFields(true)
	if err := decoder.Decode(c); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("config %s: %s", path, yamlCause(err))
	}
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("config %s: %w", path, err)
	}
	return c, nil
}

// notKnown is what yaml says of a key that it has no field for.
var notKnown = regexp.MustCompile(`field (\S+) not found in type \S+`)

func yamlCause(err error) string {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	text = strings.TrimPrefix(text, "unmarshal errors:\n  ")
	return strings.ReplaceAll(notKnown.ReplaceAllString(text, "unknown key $1"), "\n  ", "; ")
}

// check refuses what would serve less closed than the operator believes.
func (c *Config) check() error {
	for _, l := range []struct {
		key      string
		address  string
		insecure bool
		tls      TLS
	}{{"", c.Listen, c.Insecure, c.TLS}, {"api.", c.API.Listen, c.API.Insecure, c.API.TLS}} {
		if err := checkAddress(l.address); err != nil {
			return fmt.Errorf("%slisten: %w", l.key, err)
		}
		if err := l.tls.check(); err != nil {
			return fmt.Errorf("%stls.%w", l.key, err)
		}
		if !l.tls.on() && !l.insecure && !loopback(l.address) {
			return fmt.Errorf("%slisten: %s would be plaintext on a network (give %stls.cert_file and .key_file, or say %sinsecure: true)",
				l.key, l.address, l.key, l.key)
		}
	}
	if len(c.Daemons.Names) > 0 && c.TLS.ClientCAFile == "" {
		return errors.New("daemons.names: no certificate would be asked for (give tls.client_ca_file)")
	}
	if c.Daemons.TokensFile != "" && !c.TLS.on() && !loopback(c.Listen) {
		return errors.New("daemons.tokens_file: tokens would travel in plaintext (give tls.cert_file and .key_file)")
	}
	if c.API.TokensFile != "" && !c.API.TLS.on() && !loopback(c.API.Listen) {
		return errors.New("api.tokens_file: tokens would travel in plaintext (give api.tls.cert_file and .key_file)")
	}
	if c.open() && !c.Insecure && !loopback(c.Listen) {
		return errors.New("daemons: anybody could be one (give tokens_file or names, or say insecure: true)")
	}
	if c.Beat != 0 && c.Beat < time.Second {
		return errors.New("heartbeat: below 1s")
	}
	if p := c.DefaultPolicy; p != nil && p.DNS.Mode == policy.DNSProxy {
		return errors.New("default_policy: dns mode proxy needs a control plane that decides queries, and this one does not")
	}
	return c.Etcd.check(c.Policies.Endpoints)
}

// open: whoever reaches the listener is a daemon.
func (c *Config) open() bool { return c.Daemons.TokensFile == "" && len(c.Daemons.Names) == 0 }

func (t *TLS) on() bool { return t.CertFile != "" }

func (t *TLS) check() error {
	switch {
	case (t.CertFile == "") != (t.KeyFile == ""):
		return errors.New("cert_file: and key_file go together")
	case t.ClientCAFile != "" && !t.on():
		return errors.New("client_ca_file: means nothing without cert_file")
	case t.CRLFile != "" && t.ClientCAFile == "":
		return errors.New("crl_file: means nothing without client_ca_file")
	}
	return nil
}

func (e *Etcd) tls() bool { return e.CAFile != "" || e.CertFile != "" }

func (e *Etcd) check(endpoints []string) error {
	switch {
	case (e.CertFile == "") != (e.KeyFile == ""):
		return errors.New("etcd.cert_file: and key_file go together")
	case (e.User == "") != (e.PasswordFile == ""):
		return errors.New("etcd.user: and password_file go together")
	}
	for _, endpoint := range endpoints {
		if !e.tls() && !e.Insecure && !loopback(endpoint) {
			return fmt.Errorf("policies: %s would be reached in plaintext (give etcd.ca_file, or say etcd.insecure: true)", endpoint)
		}
	}
	return nil
}

func checkAddress(s string) error {
	host, port, err := net.SplitHostPort(s)
	if err != nil || host == "" || port == "" {
		return fmt.Errorf("%q is not host:port", s)
	}
	return nil
}

// loopback is judged without resolving a name: what a resolver answers today must not decide on plaintext.
func loopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.Unmap().IsLoopback()
}
