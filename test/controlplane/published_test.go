// SPDX-License-Identifier: Apache-2.0

package controlplane_test

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	_ "google.golang.org/protobuf/types/known/durationpb" // the files that the table imports
	_ "google.golang.org/protobuf/types/known/timestamppb"
)

// publishedEnums and publishedMessages are netfence.v1 as it was published and nothing more: what a peer has that was
// written before any addition of ours. They are written by hand and not taken from api/, so that a
// change there does not change them.
var publishedEnums = map[string]string{
	"PolicyMode":        "UNSPECIFIED 0, DISABLED 1, ALLOWLIST 2, BLOCK_ALL 3, DENYLIST 4",
	"DnsMode":           "UNSPECIFIED 0, DISABLED 1, ALLOWLIST 2, DENYLIST 3, PROXY 4",
	"AttachmentType":    "UNSPECIFIED 0, TC 1, CGROUP 2",
	"UnsubscribeReason": "UNSPECIFIED 0, REMOVED 1, DETACHED 2, ERROR 3",
	"ConnectionState":   "UNSPECIFIED 0, DISCONNECTED 1, CONNECTING 2, CONNECTED 3",
}

// In "event: …" the word before the colon is the oneof that all fields after it are in, up to a map.
var publishedMessages = map[string]string{
	"DaemonEvent": "event: SyncRequest sync 1, Subscribed subscribed 2, Unsubscribed unsubscribed 3, Heartbeat heartbeat 4",
	"SyncRequest": "string daemon_id 1, string hostname 2, repeated Attachment attachments 3, map metadata 4",
	"Attachment":  "string id 1, string target 2, AttachmentType type 3, PolicyMode mode 4, DnsMode dns_mode 5, map metadata 6",
	"Subscribed": "string id 1, string target 2, AttachmentType type 3, PolicyMode mode 4, DnsMode dns_mode 5, " +
		"string dns_address 6, map metadata 7",
	"Unsubscribed": "string id 1, UnsubscribeReason reason 2, string error 3",
	"Heartbeat":    "repeated AttachmentStats stats 1",
	"AttachmentStats": "string id 1, uint64 packets_allowed 2, uint64 packets_blocked 3, uint64 dns_queries_allowed 4, " +
		"uint64 dns_queries_blocked 5",
	"ControlCommand": "string id 1, command: SyncAck sync_ack 2, SetMode set_mode 3, CIDREntry allow_cidr 4, " +
		"CIDREntry deny_cidr 5, string remove_cidr 6, BulkUpdate bulk_update 7, SetDnsMode set_dns_mode 8, " +
		"DomainEntry allow_domain 9, DomainEntry deny_domain 10, string remove_domain 11, SubscribedAck subscribed_ack 12",
	"SyncAck":       "",
	"SubscribedAck": "PolicyMode mode 1, repeated CIDREntry allow_cidrs 2, repeated CIDREntry deny_cidrs 3, DnsConfig dns 4",
	"BulkUpdate":    "PolicyMode mode 1, repeated CIDREntry allow_cidrs 2, repeated CIDREntry deny_cidrs 3, DnsConfig dns 4",
	"SetMode":       "PolicyMode mode 1",
	"SetDnsMode":    "DnsMode mode 1",
	"DnsConfig": "DnsMode mode 1, repeated DomainEntry allow_domains 2, repeated DomainEntry deny_domains 3, " +
		"repeated string upstream_servers 4",
	"CIDREntry":   "string cidr 1, google.protobuf.Duration ttl 2",
	"DomainEntry": "string domain 1, bool include_subdomains 2",

	"DnsQueryRequest":  "string id 1, string domain 2, string query_type 3",
	"DnsQueryResponse": "bool allow 1, bool add_to_filter 2, repeated string ips 3, uint32 ttl_seconds 4",

	"AttachRequest":  "target: string interface_name 1, string cgroup_path 2, map metadata 3",
	"AttachResponse": "string id 1, string dns_address 2",
	"DetachRequest":  "string id 1",
	"Empty":          "", // google.protobuf.Empty: no bytes either
	"ListRequest":    "int32 page_size 1, string page_token 2",
	"ListResponse":   "repeated AttachmentInfo attachments 1, string next_page_token 2, int32 total_count 3",
	"AttachmentInfo": "string id 1, string target 2, AttachmentType type 3, PolicyMode mode 4, DnsMode dns_mode 5, " +
		"string dns_address 6, map metadata 7, uint64 packets_allowed 8, uint64 packets_blocked 9, " +
		"uint64 dns_queries_allowed 10, uint64 dns_queries_blocked 11, google.protobuf.Timestamp attached_at 12",
	"DaemonStatus": "string version 1, string daemon_id 2, string hostname 3, ConnectionState control_plane_state 4, " +
		"string control_plane_address 5, int32 attachment_count 6",
}

// published builds the descriptors. They are registered nowhere: this program holds our own of the same names, too.
func published() (protoreflect.FileDescriptor, error) {
	file := &descriptorpb.FileDescriptorProto{
		Name:       proto.String("published.proto"),
		Package:    proto.String("netfence.v1"),
		Syntax:     proto.String("proto3"),
		Dependency: []string{"google/protobuf/duration.proto", "google/protobuf/timestamp.proto"},
	}
	for name, values := range publishedEnums {
		enum := &descriptorpb.EnumDescriptorProto{Name: proto.String(name)}
		for entry := range strings.SplitSeq(values, ", ") {
			var value string
			var number int32
			if _, err := fmt.Sscan(entry, &value, &number); err != nil {
				return nil, fmt.Errorf("%s: %q: %w", name, entry, err)
			}
			enum.Value = append(enum.Value, &descriptorpb.EnumValueDescriptorProto{
				Name: proto.String(enumPrefixes[name] + value), Number: proto.Int32(number),
			})
		}
		file.EnumType = append(file.EnumType, enum)
	}
	for name, fields := range publishedMessages {
		message, err := messageOf(name, fields)
		if err != nil {
			return nil, err
		}
		file.MessageType = append(file.MessageType, message)
	}
	return protodesc.NewFile(file, protoregistry.GlobalFiles)
}

var enumPrefixes = map[string]string{
	"PolicyMode": "POLICY_MODE_", "DnsMode": "DNS_MODE_", "AttachmentType": "ATTACHMENT_TYPE_", "UnsubscribeReason": "UNSUBSCRIBE_REASON_",
	"ConnectionState": "CONNECTION_STATE_",
}

var scalars = map[string]descriptorpb.FieldDescriptorProto_Type{
	"string": descriptorpb.FieldDescriptorProto_TYPE_STRING,
	"int32":  descriptorpb.FieldDescriptorProto_TYPE_INT32,
	"uint32": descriptorpb.FieldDescriptorProto_TYPE_UINT32,
	"bool":   descriptorpb.FieldDescriptorProto_TYPE_BOOL,
	"uint64": descriptorpb.FieldDescriptorProto_TYPE_UINT64,
}

func messageOf(name, fields string) (*descriptorpb.DescriptorProto, error) {
	message := &descriptorpb.DescriptorProto{Name: proto.String(name)}
	for entry := range strings.SplitSeq(fields, ", ") {
		if entry == "" {
			continue
		}
		if oneof, rest, ok := strings.Cut(entry, ": "); ok {
			message.OneofDecl = append(message.OneofDecl, &descriptorpb.OneofDescriptorProto{Name: proto.String(oneof)})
			entry = rest
		}
		repeated, entry := strings.HasPrefix(entry, "repeated "), strings.TrimPrefix(entry, "repeated ")
		var kind, field string
		var number int32
		if _, err := fmt.Sscan(entry, &kind, &field, &number); err != nil {
			return nil, fmt.Errorf("%s: %q: %w", name, entry, err)
		}
		f := &descriptorpb.FieldDescriptorProto{
			Name: proto.String(field), Number: proto.Int32(number), Label: descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum(),
		}
		if kind == "map" {
			message.NestedType = append(message.NestedType, stringMap())
			kind, repeated = name+".MetadataEntry", true
		}
		if repeated {
			f.Label = descriptorpb.FieldDescriptorProto_LABEL_REPEATED.Enum()
		}
		if len(message.OneofDecl) > 0 && !repeated {
			f.OneofIndex = proto.Int32(0)
		}
		setType(f, kind)
		message.Field = append(message.Field, f)
	}
	return message, nil
}

func setType(f *descriptorpb.FieldDescriptorProto, kind string) {
	scalar, ok := scalars[kind]
	if ok {
		f.Type = scalar.Enum()
		return
	}
	f.Type = descriptorpb.FieldDescriptorProto_TYPE_MESSAGE.Enum()
	if _, ok := publishedEnums[kind]; ok {
		f.Type = descriptorpb.FieldDescriptorProto_TYPE_ENUM.Enum()
	}
	if !strings.HasPrefix(kind, "google.") {
		kind = "netfence.v1." + kind
	}
	f.TypeName = proto.String("." + kind)
}

// stringMap is what a map<string,string> called metadata is on the wire.
func stringMap() *descriptorpb.DescriptorProto {
	field := func(name string, number int32) *descriptorpb.FieldDescriptorProto {
		return &descriptorpb.FieldDescriptorProto{
			Name: proto.String(name), Number: proto.Int32(number),
			Label: descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum(),
			Type:  descriptorpb.FieldDescriptorProto_TYPE_STRING.Enum(),
		}
	}
	return &descriptorpb.DescriptorProto{
		Name:    proto.String("MetadataEntry"),
		Field:   []*descriptorpb.FieldDescriptorProto{field("key", 1), field("value", 2)},
		Options: &descriptorpb.MessageOptions{MapEntry: proto.Bool(true)},
	}
}
