// SPDX-License-Identifier: Apache-2.0

package controlplane_test

// event is a DaemonEvent as the peer tells it: JSON with the names of the .proto files. One field is set.
type event struct {
	Sync         *syncRequest
	Subscribed   *attachment
	Unsubscribed *unsubscribed
	Heartbeat    *struct{ Stats []stats }
	Result       *result // only to a peer that knows our additions

	Text string `json:"-"` // all of it
}

type syncRequest struct {
	DaemonID    string `json:"daemon_id"`
	Hostname    string
	Attachments []attachment
	Metadata    map[string]string
	Policies    []policyRef // addition
}

type policyRef struct{ Name, Revision string }

// attachment is both Attachment and Subscribed.
type attachment struct {
	ID       string
	Target   string
	Type     string
	Mode     string
	DNSMode  string `json:"dns_mode"`
	Metadata map[string]string
	// DNSAddress is an addition in Attachment.
	DNSAddress string `json:"dns_address"`

	Applied *struct { // addition
		Revision   string
		PolicyName string `json:"policy_name"`
	}
}

type unsubscribed struct{ ID, Reason, Error string }

type stats struct {
	ID             string
	PacketsAllowed uint64 `json:"packets_allowed,string"`
	PacketsBlocked uint64 `json:"packets_blocked,string"`

	DNSQueriesAllowed uint64 `json:"dns_queries_allowed,string"`
	DNSQueriesBlocked uint64 `json:"dns_queries_blocked,string"`
}

type result struct {
	Number     uint64 `json:",string"`
	ID         string
	Code       string
	Revision   string
	Violations []struct{ Field, Value, Expected string }
}

const (
	allowlist = "POLICY_MODE_ALLOWLIST"
	blockAll  = "POLICY_MODE_BLOCK_ALL"

	reasonRemoved  = "UNSUBSCRIBE_REASON_REMOVED"
	reasonDetached = "UNSUBSCRIBE_REASON_DETACHED"
	reasonError    = "UNSUBSCRIBE_REASON_ERROR"
)
