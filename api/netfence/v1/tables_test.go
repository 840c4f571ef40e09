// SPDX-License-Identifier: Apache-2.0

package netfencev1_test

// The tables are written by hand, not taken from the .proto files: they are what other people's control planes and
// orchestrators were built from. The published ones never change. The added ones only grow.

var publishedServices = map[string]string{
	"ControlPlane": `
		Connect(stream DaemonEvent) stream ControlCommand,
		QueryDns(DnsQueryRequest) DnsQueryResponse`,
	"DaemonService": `
		Attach(AttachRequest) AttachResponse,
		Detach(DetachRequest) Empty,
		List(ListRequest) ListResponse,
		GetStatus(Empty) DaemonStatus`,
}

var addedServices = map[string]string{
	"ControlPlane": `Events(stream EventBatch) stream EventControl`,
	"DaemonService": `
		Get(GetRequest) GetResponse,
		SetPolicy(SetPolicyRequest) SetPolicyResponse,
		SetMetadata(SetMetadataRequest) SetMetadataResponse,
		Explain(ExplainRequest) ExplainResponse,
		Watch(WatchRequest) stream EventBatch`,
}

var publishedEnums = map[string]string{
	"PolicyMode": `POLICY_MODE_UNSPECIFIED 0, POLICY_MODE_DISABLED 1, POLICY_MODE_ALLOWLIST 2, POLICY_MODE_BLOCK_ALL 3,
		POLICY_MODE_DENYLIST 4`,
	"DnsMode": `DNS_MODE_UNSPECIFIED 0, DNS_MODE_DISABLED 1, DNS_MODE_ALLOWLIST 2, DNS_MODE_DENYLIST 3,
		DNS_MODE_PROXY 4`,
	"AttachmentType": `ATTACHMENT_TYPE_UNSPECIFIED 0, ATTACHMENT_TYPE_TC 1, ATTACHMENT_TYPE_CGROUP 2`,
	"UnsubscribeReason": `UNSUBSCRIBE_REASON_UNSPECIFIED 0, UNSUBSCRIBE_REASON_REMOVED 1,
		UNSUBSCRIBE_REASON_DETACHED 2, UNSUBSCRIBE_REASON_ERROR 3`,
	"ConnectionState": `CONNECTION_STATE_UNSPECIFIED 0, CONNECTION_STATE_DISCONNECTED 1,
		CONNECTION_STATE_CONNECTING 2, CONNECTION_STATE_CONNECTED 3`,
}

var addedEnums = map[string]string{
	"CommandCode": `COMMAND_CODE_UNSPECIFIED 0, COMMAND_CODE_APPLIED 1, COMMAND_CODE_REFUSED 2,
		COMMAND_CODE_UNKNOWN 3, COMMAND_CODE_STALE 4, COMMAND_CODE_SUPERSEDED 5`,
	"Direction":  `DIRECTION_UNSPECIFIED 0, DIRECTION_INGRESS 1, DIRECTION_EGRESS 2`,
	"Loopback":   `LOOPBACK_UNSPECIFIED 0, LOOPBACK_OWN 1, LOOPBACK_ALLOW 2, LOOPBACK_DENY 3`,
	"Protocol":   `PROTOCOL_UNSPECIFIED 0, PROTOCOL_TCP 6, PROTOCOL_UDP 17`,
	"RefuseCode": `REFUSE_CODE_UNSPECIFIED 0, REFUSE_CODE_NXDOMAIN 1, REFUSE_CODE_REFUSED 2`,
	"Replies":    `REPLIES_UNSPECIFIED 0, REPLIES_ALLOW 1, REPLIES_DENY 2`,
}

var publishedMessages = map[string]string{
	// Daemon to control plane.
	"DaemonEvent": `oneof event: SyncRequest sync 1, Subscribed subscribed 2, Unsubscribed unsubscribed 3,
		Heartbeat heartbeat 4`,
	"SyncRequest": `string daemon_id 1, string hostname 2, repeated Attachment attachments 3,
		map<string,string> metadata 4`,
	"Attachment": `string id 1, string target 2, AttachmentType type 3, PolicyMode mode 4, DnsMode dns_mode 5,
		map<string,string> metadata 6`,
	"Subscribed": `string id 1, string target 2, AttachmentType type 3, PolicyMode mode 4, DnsMode dns_mode 5,
		string dns_address 6, map<string,string> metadata 7`,
	"Unsubscribed": `string id 1, UnsubscribeReason reason 2, string error 3`,
	"Heartbeat":    `repeated AttachmentStats stats 1`,
	"AttachmentStats": `string id 1, uint64 packets_allowed 2, uint64 packets_blocked 3, uint64 dns_queries_allowed 4,
		uint64 dns_queries_blocked 5`,

	// Control plane to daemon.
	"ControlCommand": `string id 1; oneof command: SyncAck sync_ack 2, SetMode set_mode 3, CIDREntry allow_cidr 4,
		CIDREntry deny_cidr 5, string remove_cidr 6, BulkUpdate bulk_update 7, SetDnsMode set_dns_mode 8,
		DomainEntry allow_domain 9, DomainEntry deny_domain 10, string remove_domain 11,
		SubscribedAck subscribed_ack 12`,
	"SyncAck": ``,
	"SubscribedAck": `PolicyMode mode 1, repeated CIDREntry allow_cidrs 2, repeated CIDREntry deny_cidrs 3,
		DnsConfig dns 4`,
	"BulkUpdate": `PolicyMode mode 1, repeated CIDREntry allow_cidrs 2, repeated CIDREntry deny_cidrs 3,
		DnsConfig dns 4`,
	"SetMode":    `PolicyMode mode 1`,
	"SetDnsMode": `DnsMode mode 1`,
	"DnsConfig": `DnsMode mode 1, repeated DomainEntry allow_domains 2, repeated DomainEntry deny_domains 3,
		repeated string upstream_servers 4`,
	"CIDREntry":        `string cidr 1, Duration ttl 2`,
	"DomainEntry":      `string domain 1, bool include_subdomains 2`,
	"DnsQueryRequest":  `string id 1, string domain 2, string query_type 3`,
	"DnsQueryResponse": `bool allow 1, bool add_to_filter 2, repeated string ips 3, uint32 ttl_seconds 4`,

	// Local API.
	"AttachRequest": `oneof target: string interface_name 1, string cgroup_path 2;
		map<string,string> metadata 3`,
	"AttachResponse": `string id 1, string dns_address 2`,
	"DetachRequest":  `string id 1`,
	"ListRequest":    `int32 page_size 1, string page_token 2`,
	"ListResponse":   `repeated AttachmentInfo attachments 1, string next_page_token 2, int32 total_count 3`,
	"AttachmentInfo": `string id 1, string target 2, AttachmentType type 3, PolicyMode mode 4, DnsMode dns_mode 5,
		string dns_address 6, map<string,string> metadata 7, uint64 packets_allowed 8, uint64 packets_blocked 9,
		uint64 dns_queries_allowed 10, uint64 dns_queries_blocked 11, Timestamp attached_at 12`,
	"DaemonStatus": `string version 1, string daemon_id 2, string hostname 3, ConnectionState control_plane_state 4,
		string control_plane_address 5, int32 attachment_count 6`,
}

var addedMessages = map[string]string{
	// Fields of published messages.
	"DaemonEvent": `oneof event: CommandResult result 100`,
	"SyncRequest": `Hello hello 100, repeated PolicyRef policies 101`,
	"SyncAck":     `Welcome welcome 100`,
	"Attachment":  `Applied applied 100, string dns_address 101`,
	"Subscribed":  `Applied applied 100`,
	"ControlCommand": `uint64 number 100, string revision 101, string base_revision 102;
		oneof command: NamedPolicy put_policy 110, string delete_policy 111, PolicyRef use_policy 112,
		GoAway go_away 113`,
	"SubscribedAck": `bool audit 100, Replies replies 101, PolicyRef use_policy 102,
		repeated PortRange replies_udp 103, Loopback loopback 104, repeated string source 105`,
	"BulkUpdate": `bool audit 100, Replies replies 101, repeated PortRange replies_udp 103, Loopback loopback 104,
		repeated string source 105`,
	"DnsConfig":   `RefuseCode refuse_with 100, repeated ZoneForward forward 101`,
	"CIDREntry":   `repeated PortRange ports 100, Timestamp expires_at 101`,
	"DomainEntry": `repeated PortRange ports 100, bool private 101`,
	"AttachRequest": `oneof target: int32 pid 100;
		string netns 101, Direction direction 102, string key 103, BulkUpdate policy 104, string policy_name 105,
		string inherit_learned_from 106, bool dry_run 107`,
	"AttachResponse": `bool created 100, repeated string warnings 101, repeated string nameservers 102`,
	"DetachRequest":  `string key 100, bool missing_ok 101, bool all 102`,
	"AttachmentInfo": `Direction direction 100, map<string,uint64> drops 101, map<string,uint64> would_deny 102,
		uint64 dns_queries_would_deny 103`,
	"DaemonStatus": `repeated string problems 100, Counters counters 101`,

	// Messages of our own.
	"PortRange":     `uint32 first 1, uint32 last 2, Protocol protocol 3`,
	"ZoneForward":   `string zone 1, repeated string to 2, bool original 3`,
	"PolicyRef":     `string name 1, string revision 2`,
	"NamedPolicy":   `string name 1, string revision 2, BulkUpdate policy 3`,
	"Applied":       `string revision 1, string policy_name 2, bool audit 3, string error 4`,
	"Hello":         `repeated string features 1, string instance_id 2, uint64 stream_seq 3, uint64 max_command_bytes 4, string last_stream_error 5`,
	"Welcome":       `repeated string features 1, string server_id 2, Duration heartbeat_interval 3`,
	"GoAway":        `Duration min 1, Duration max 2`,
	"CommandResult": `uint64 number 1, string id 2, CommandCode code 3, string revision 4, repeated Violation violations 5`,
	"Violation":     `string field 1, string value 2, string expected 3`,
	"EventBatch":    `string daemon_id 1, string instance_id 2, uint64 number 3, repeated Event events 4, uint64 lost 5`,
	"EventControl":  `uint64 received 1, uint32 max_rate 2`,
	"Event": `Timestamp time 1, string id 2;
		oneof event: DeniedFlow denied_flow 3, DnsDecision dns_decision 4, Incident incident 5`,
	"DeniedFlow": `string address 1, uint32 port 2, uint32 ip_protocol 3, string reason 4, string rule 5,
		repeated string names 6, bool audit 7, string source_address 8, uint32 source_port 9, uint32 length 10`,
	"DnsDecision": `string domain 1, string query_type 2, bool allowed 3, string rule 4, repeated string learned 5,
		bool audit 6, string reason 7`,
	"Incident":        `string kind 1, string message 2`,
	"WatchRequest":    `repeated string ids 1`,
	"ExplainRequest":  `string id 1, string key 2, string destination 3, uint32 port 4, Protocol protocol 5`,
	"ExplainResponse": `bool allow 1, string list 2, string rule 3, string reason 4`,
	"Counters": `uint64 packets_allowed 1, uint64 packets_blocked 2, uint64 dns_queries_allowed 3,
		uint64 dns_queries_blocked 4, map<string,uint64> drops 5, map<string,uint64> would_deny 6,
		uint64 dns_queries_would_deny 7`,
	"GetRequest": `string id 1, string key 2`,
	"GetResponse": `AttachmentInfo attachment 1, BulkUpdate policy 2, Applied applied 3, map<string,uint64> drops 4,
		string last_error 5, Direction direction 6, bool pending 7, repeated string warnings 8, string key 9,
		repeated LearnedAddress learned 10, bool own_policy 11,
		uint64 flows_unnoted 12, Guard guard 13`,
	"Guard":               `repeated CIDREntry allow_cidrs 1, repeated CIDREntry deny_cidrs 2`,
	"LearnedAddress":      `string address 1, repeated string names 2, repeated PortRange ports 3, Duration remaining 4`,
	"SetPolicyRequest":    `string id 1, string key 2, BulkUpdate policy 3`,
	"SetPolicyResponse":   `Applied applied 1, repeated string warnings 2`,
	"SetMetadataRequest":  `string id 1, string key 2, map<string,string> metadata 3`,
	"SetMetadataResponse": `AttachmentInfo attachment 1`,
}
