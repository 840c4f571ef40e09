// SPDX-License-Identifier: Apache-2.0

package config

import (
	"strings"
	"time"
)

// status is what a key is worth in this release.
type status uint8

const (
	inForce status = iota
	// ignored keys belong to the published daemon and mean nothing to this one.
	ignored
)

// A key is one setting: its name in the file, and how its value is read.
type key struct {
	name   string
	status status
	set    func(*Config, value) error
}

// env is the key's name in the environment.
func (k key) env() string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(k.name, ".", "_"))
}

const envPrefix = "NETFENCE_"

// keys are all there are, in the order of the documentation.
var keys = []key{
	{name: "socket", set: path(func(c *Config) *string { return &c.Socket }, maxSocketPath)},
	{name: "socket_group", set: text(func(c *Config) *string { return &c.SocketGroup })},
	{name: "data_dir", set: path(func(c *Config) *string { return &c.DataDir }, maxPath)},
	{name: "run_dir", set: path(func(c *Config) *string { return &c.RunDir }, maxPath)},
	{name: "bpf_dir", set: path(func(c *Config) *string { return &c.BPFDir }, maxPath)},
	{name: "interface_hook", set: setInterfaceHook},
	{name: "log_level", set: setLogLevel},
	{name: "metadata", set: setMetadata},
	{name: "daemon_id", set: setDaemonID},

	{name: "control_plane.url", set: setURL},
	{name: "control_plane.subscribe_ack_timeout", set: duration(func(c *Config) *time.Duration { return &c.ControlPlane.SubscribeAckTimeout })},
	{name: "control_plane.attach_when_unreachable", set: setUnreachable},
	{name: "control_plane.on_disconnect", set: setOnDisconnect},
	{name: "control_plane.insecure", set: boolean(func(c *Config) *bool { return &c.ControlPlane.Insecure })},
	{name: "control_plane.heartbeat_interval", set: setHeartbeat},
	{name: "control_plane.token_file", set: path(func(c *Config) *string { return &c.ControlPlane.TokenFile }, maxPath)},
	{name: "control_plane.tls.ca_file", set: path(func(c *Config) *string { return &c.ControlPlane.TLS.CAFile }, maxPath)},
	{name: "control_plane.tls.cert_file", set: path(func(c *Config) *string { return &c.ControlPlane.TLS.CertFile }, maxPath)},
	{name: "control_plane.tls.key_file", set: path(func(c *Config) *string { return &c.ControlPlane.TLS.KeyFile }, maxPath)},
	{name: "control_plane.tls.server_name", set: text(func(c *Config) *string { return &c.ControlPlane.TLS.ServerName })},
	{name: "control_plane.tls.spiffe_id", set: setSPIFFEID},
	{name: "control_plane.tls.crl_file", set: path(func(c *Config) *string { return &c.ControlPlane.TLS.CRLFile }, maxPath)},

	{name: "default_policy", set: setDefaultPolicy},
	{name: "guard", set: setGuard},
	{name: "strict", set: boolean(func(c *Config) *bool { return &c.Strict })},

	{name: "dns.upstream", set: setUpstream},
	{name: "dns.forward", set: setForward},
	{name: "dns.min_ttl", set: life(func(c *Config) *time.Duration { return &c.DNS.MinTTL })},
	{name: "dns.max_ttl", set: life(func(c *Config) *time.Duration { return &c.DNS.MaxTTL })},
	{name: "dns.grace", set: life(func(c *Config) *time.Duration { return &c.DNS.Grace })},
	{name: "dns.max_flow", set: setMaxFlow},
	{name: "dns.refuse_with", set: setRefuseWith},
	{name: "dns.allow_private_answers", set: boolean(func(c *Config) *bool { return &c.DNS.AllowPrivateAnswers })},
	{name: "dns.cache_bytes", set: setCacheBytes},
	{name: "dns.serve_stale", set: setServeStale},
	{name: "dns.listen_addr", status: ignored, set: accept},
	{name: "dns.port_min", status: ignored, set: accept},
	{name: "dns.port_max", status: ignored, set: accept},

	{name: "limits.attachments", set: count(func(c *Config) *int { return &c.Limits.Attachments })},
	{name: "limits.rules", set: count(func(c *Config) *int { return &c.Limits.Rules })},
	{name: "limits.learned", set: count(func(c *Config) *int { return &c.Limits.Learned })},
	{name: "limits.names", set: count(func(c *Config) *int { return &c.Limits.Names })},
	{name: "limits.flows", set: count(func(c *Config) *int { return &c.Limits.Flows })},
	{name: "limits.queries", set: count(func(c *Config) *int { return &c.Limits.Queries })},
	{name: "limits.metadata_bytes", set: count(func(c *Config) *int { return &c.Limits.MetadataBytes })},

	{name: "events.rate", set: setEventRate},
	{name: "metrics.listen", set: setMetricsListen},
	{name: "metrics.per_attachment", set: boolean(func(c *Config) *bool { return &c.Metrics.PerAttachment })},
}

func keyNames() []string {
	names := make([]string, len(keys))
	for i, k := range keys {
		names[i] = k.name
	}
	return names
}

func keyByName(name string) (key, bool) {
	for _, k := range keys {
		if k.name == name {
			return k, true
		}
	}
	return key{}, false
}

// isSection tells whether some key lives below name.
func isSection(name string) bool {
	for _, k := range keys {
		if strings.HasPrefix(k.name, name+".") {
			return true
		}
	}
	return false
}

// apply sets the key and records what its operator should know.
func (k key) apply(c *Config, v value) error {
	if err := k.set(c, v); err != nil {
		return err
	}
	switch k.status {
	case ignored:
		c.Warnings = append(c.Warnings, k.name+" is ignored: this daemon needs no DNS address or port range")
	case inForce:
	}
	return nil
}

func accept(*Config, value) error { return nil }
