// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"strings"
	"time"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
)

// attachmentRecord is one attachment in JSON: the wire's field names, enums in lower case.
type attachmentRecord struct {
	ID                string            `json:"id"`
	Target            string            `json:"target"`
	Type              string            `json:"type"`
	Direction         string            `json:"direction,omitempty"`
	Mode              string            `json:"mode"`
	DNSMode           string            `json:"dns_mode"`
	DNSAddress        string            `json:"dns_address"`
	Metadata          map[string]string `json:"metadata"`
	PacketsAllowed    uint64            `json:"packets_allowed"`
	PacketsBlocked    uint64            `json:"packets_blocked"`
	DNSQueriesAllowed uint64            `json:"dns_queries_allowed"`
	DNSQueriesBlocked uint64            `json:"dns_queries_blocked"`
	// Drops has reasons, WouldDeny those of packets that passed because the policy was in audit.
	Drops               map[string]uint64 `json:"drops"`
	WouldDeny           map[string]uint64 `json:"would_deny"`
	DNSQueriesWouldDeny uint64            `json:"dns_queries_would_deny"`
	AttachedAt          time.Time         `json:"attached_at"`
}

func newAttachmentRecord(info *netfencev1.AttachmentInfo) attachmentRecord {
	r := attachmentRecord{
		ID:                  info.GetId(),
		Target:              info.GetTarget(),
		Type:                lower(info.GetType().String(), "ATTACHMENT_TYPE_"),
		Mode:                lower(info.GetMode().String(), "POLICY_MODE_"),
		DNSMode:             lower(info.GetDnsMode().String(), "DNS_MODE_"),
		DNSAddress:          info.GetDnsAddress(),
		Metadata:            info.GetMetadata(),
		PacketsAllowed:      info.GetPacketsAllowed(),
		PacketsBlocked:      info.GetPacketsBlocked(),
		DNSQueriesAllowed:   info.GetDnsQueriesAllowed(),
		DNSQueriesBlocked:   info.GetDnsQueriesBlocked(),
		Drops:               orNone(info.GetDrops()),
		WouldDeny:           orNone(info.GetWouldDeny()),
		DNSQueriesWouldDeny: info.GetDnsQueriesWouldDeny(),
		AttachedAt:          info.GetAttachedAt().AsTime(),
	}
	if info.GetDirection() != netfencev1.Direction_DIRECTION_UNSPECIFIED {
		r.Direction = lower(info.GetDirection().String(), "DIRECTION_")
	}
	if r.Metadata == nil {
		r.Metadata = map[string]string{}
	}
	return r
}

// orNone is printed as {}.
func orNone(counts map[string]uint64) map[string]uint64 {
	if counts == nil {
		return map[string]uint64{}
	}
	return counts
}

// lower is an enum's name as policy files write it: POLICY_MODE_BLOCK_ALL is block-all.
func lower(name, prefix string) string {
	return strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(name, prefix)), "_", "-")
}

// kind is the type in words, with the side at which an interface is filtered.
func (r attachmentRecord) kind() string {
	if r.Direction == "" {
		return r.Type
	}
	return "interface, " + r.Direction
}
