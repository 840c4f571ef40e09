// SPDX-License-Identifier: Apache-2.0

// Package config reads what the daemon's operator decided: defaults, then the YAML file, then the environment.
//
// Every key of the file is also an environment variable: NETFENCE_ and the key in capitals, "_" for ".". An unknown
// key is refused with the nearest known one, because a misspelt key that is silently ignored leaves a machine less
// protected than its operator believes.
package config

import (
	"log/slog"
	"net/netip"
	"time"

	"github.com/netfence/netfence/policy"
)

// DefaultPath is the file that is read when none is named; it need not exist.
const DefaultPath = "/etc/netfence/config.yaml"

// DefaultSocket is where the daemon listens, and where the command line looks for it.
const DefaultSocket = "/var/run/netfence.sock"

// Config is what the daemon runs with. It is not changed after Load.
type Config struct {
	// Socket is the local API's unix socket.
	Socket string
	// SocketGroup may use it, beside root. Empty: nobody.
	SocketGroup string
	// DataDir outlives a boot: the daemon's id.
	DataDir string
	// RunDir is of this boot: the daemon's lock and the state of the attachments.
	RunDir string
	// BPFDir is where the kernel objects are pinned, on a bpffs.
	BPFDir string
	// InterfaceHook is how programs get onto interfaces.
	InterfaceHook InterfaceHook
	LogLevel      slog.Level
	// Metadata describes this daemon to the control plane.
	Metadata map[string]string
	// DaemonID overrides the id that the daemon mints for itself. Empty: minted.
	DaemonID string

	ControlPlane ControlPlane
	// DefaultPolicy applies to an attachment that no local policy file matches.
	DefaultPolicy *policy.Policy
	// Guard is above every policy. nil: none.
	Guard *policy.Guard
	// Strict refuses an attach that would leave something unconfined.
	Strict  bool
	DNS     DNS
	Limits  Limits
	Events  Events
	Metrics Metrics

	// Warnings are what the operator should know about the keys that were set: ignored, or without effect yet.
	Warnings []string
}

// InterfaceHook is a way to get programs onto interfaces.
type InterfaceHook uint8

// The values of interface_hook.
const (
	HookAuto InterfaceHook = iota // tcx where the kernel has it, else clsact
	HookTCX
	HookClsact
)

// ControlPlane is where policies come from.
type ControlPlane struct {
	URL Endpoint
	// SubscribeAckTimeout is how long Attach waits for the first configuration. 0: it does not wait.
	SubscribeAckTimeout   time.Duration
	AttachWhenUnreachable Unreachable
	// Heartbeat is how often counters are sent, unless the control plane asks for something else.
	Heartbeat time.Duration
	// BlockAfter is how long its policies are in force when the control plane is lost. 0: for ever.
	BlockAfter time.Duration
	// Insecure permits plaintext to a control plane on another host.
	Insecure bool
	TLS      TLS
	// TokenFile holds a bearer token. Empty: none is sent.
	TokenFile string
}

// TLS says who the control plane must be and who the daemon is. All files are PEM, and read for each connection.
type TLS struct {
	// CAFile holds the authorities that a server may be of. Empty: the system's.
	CAFile string
	// CertFile and KeyFile are the daemon's own. Empty: it has none.
	CertFile, KeyFile string
	// ServerName is what the server's certificate must be for. Empty: the host of the url.
	ServerName string
	// SPIFFEID is the URI that the server's certificate must have, instead of a name. Empty: the name counts.
	SPIFFEID string
	// CRLFile holds revocation lists of the authorities. Empty: nothing is revoked.
	CRLFile string
}

// Encrypted tells whether the control plane is dialled with TLS: always, unless it is on this host or the operator says
// otherwise.
func (c ControlPlane) Encrypted() bool {
	return c.TLS != TLS{} || !c.URL.Loopback() && !c.Insecure
}

// Unreachable is what Attach does while the control plane cannot be reached.
type Unreachable uint8

// The values of control_plane.attach_when_unreachable.
const (
	UnreachableFail    Unreachable = iota // refuse the attach at once
	UnreachablePending                    // attach block-all, until the control plane says otherwise
	UnreachableCached                     // attach with the last policy of the same key
)

// DNS is what the DNS server does unless a policy says otherwise.
type DNS struct {
	// Upstreams that answer for policies that name none. Empty: the host's resolv.conf.
	Upstreams []netip.AddrPort
	// Forward sends zones to resolvers of their own.
	Forward []policy.ZoneForward
	// MinTTL and MaxTTL clamp the life of a learned address, Grace is added to it.
	MinTTL, MaxTTL, Grace time.Duration
	// MaxFlowTCP and MaxFlowOther bound how long a flow outlives the last answer that named its address.
	MaxFlowTCP, MaxFlowOther time.Duration
	RefuseWith               policy.RefuseCode // never policy.RefuseDefault
	AllowPrivateAnswers      bool
	// CacheBytes is what kept answers may take; 0: none are kept.
	CacheBytes int
	// ServeStale is for how long after its end an answer stands in for one that cannot be had. 0: never.
	ServeStale time.Duration
}

// Limits bound what one attachment may use; Attachments is for the daemon as a whole.
type Limits struct {
	Attachments, Rules, Learned, Names, Flows, Queries int
	// MetadataBytes is the sum of keys and values.
	MetadataBytes int
}

// Events tunes the event stream.
type Events struct {
	// Rate is events a second for each attachment.
	Rate int
}

// Metrics says where metrics are served.
type Metrics struct {
	// Listen is a host:port. Empty: off.
	Listen        string
	PerAttachment bool
}

// Default is the configuration of an empty file.
func Default() *Config {
	return &Config{
		Socket:  DefaultSocket,
		DataDir: "/var/lib/netfence",
		RunDir:  "/run/netfence",
		BPFDir:  "/sys/fs/bpf/netfence",
		ControlPlane: ControlPlane{
			URL:                 Endpoint{Dir: "/etc/netfence/policies"},
			SubscribeAckTimeout: 5 * time.Second,
			Heartbeat:           30 * time.Second,
		},
		DefaultPolicy: policy.BlockAll(),
		DNS: DNS{
			MinTTL: 30 * time.Second, MaxTTL: time.Hour, Grace: 30 * time.Second,
			MaxFlowTCP: 24 * time.Hour, MaxFlowOther: 4 * time.Hour,
			RefuseWith: policy.RefuseNXDomain,
			CacheBytes: 32 << 20,
		},
		Limits: Limits{
			Attachments: 32768, Rules: 100000, Learned: 4096, Names: 4096, Flows: 4096, Queries: 256, MetadataBytes: 4096,
		},
		Events: Events{Rate: 100},
	}
}
