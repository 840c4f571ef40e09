/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * One set of maps for all attachments, pinned by name unless they say otherwise.
 * The daemon writes all of them but counters, drops, flows and events, which the
 * programs write.
 */
#ifndef NETFENCE_MAPS_H
#define NETFENCE_MAPS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "dns_types.h"
#include "types.h"

struct bpf_map; /* what bpf_for_each_map_elem hands its callback */

/*
 * Index 0: the last incarnation given out. Index 1: nanoseconds on the boot clock at
 * which the lease of leased policies is over, renewed by the daemon; 0: never.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} nf_meta SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_ATTACHMENTS);
	__type(key, __u32);
	__type(value, struct attachment);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} nf_attachments SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_ATTACHMENTS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct interface_key);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} nf_interfaces SEC(".maps");

/* ifindex modulo the number of places → the interface there, if it is in nf_interfaces */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, INTERFACE_PLACES);
	__type(key, __u32);
	__type(value, struct interface_place);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} nf_interface_places SEC(".maps");

/* The daemon keeps it as the addresses of the interfaces, and of bridges around them, are. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, MAX_ONLINK);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct onlink_key);
	__type(value, __u8);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} nf_onlink SEC(".maps");

/*
 * Cgroup identity. The kernel keeps a cgroup's entry when its last program goes,
 * so detach writes 0 first. Keyed by cgroup alone: all programs share the entry.
 */
struct {
	__uint(type, BPF_MAP_TYPE_CGROUP_STORAGE);
	__type(key, __u64);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} nf_cgroups SEC(".maps");

/* attachment → policy word */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_ATTACHMENTS);
	__type(key, __u32);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} nf_words SEC(".maps");

/* slot → longest-prefix table; immutable while a word names the slot */
struct table {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(key_size, sizeof(struct prefix));
	__uint(value_size, sizeof(struct clause));
};
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, MAX_SLOTS);
	__type(key, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__array(values, struct table);
} nf_tables SEC(".maps");

/* slot → clauses beyond the one that stands in the table itself; most slots have none */
struct clauses {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_INNER_MAP); /* lengths differ */
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(struct clause));
};
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, MAX_SLOTS);
	__type(key, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__array(values, struct clauses);
} nf_clauses SEC(".maps");

/* slot → what may be sent from; most slots have none */
struct sources {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_SOURCES);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(struct source));
};
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, MAX_SLOTS);
	__type(key, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__array(values, struct sources);
} nf_sources SEC(".maps");

/* slot → what it holds; the programs do not read it */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_SLOTS);
	__type(key, __u32);
	__type(value, struct slot_content);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} nf_slots SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MAX_ATTACHMENTS);
	__type(key, __u32);
	__type(value, struct counters);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} nf_counters SEC(".maps");

/*
 * attachment * MAX_REASONS + reason → packets. Not per CPU: 8 MiB for all
 * attachments on any host, and a dropped packet can pay for the atomic add.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_ATTACHMENTS *MAX_REASONS);
	__type(key, __u32);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} nf_drops SEC(".maps");

/* Likewise, of what audit let pass. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_ATTACHMENTS *MAX_REASONS);
	__type(key, __u32);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} nf_audited SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_FLOWS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct flow_key);
	__type(value, struct flow);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} nf_flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_LEARNED);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct learned_key);
	__type(value, struct learned);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} nf_learned SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_NAMES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct name_key);
	__type(value, struct name);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} nf_names SEC(".maps");

/*
 * attachment → how often its entries of nf_learned have grown; 0: it has none. It is
 * counted after they have, and read before they are looked at.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE); /* written by the daemon for each lesson */
	__uint(max_entries, MAX_ATTACHMENTS);
	__type(key, __u32);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} nf_lessons SEC(".maps");

/* attachment → live entries of nf_flows: the bound of each, and "none" at a glance */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_ATTACHMENTS);
	__type(key, __u32);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} nf_flow_counts SEC(".maps");

/*
 * What was dropped, for the daemon to tell of; see event.h. Neither is pinned:
 * what one daemon did not read is not for the next one to tell of as news, and
 * the layout may change between builds. The ring's size is the loader's.
 */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} nf_events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_ATTACHMENTS);
	__type(key, __u32);
	__type(value, struct event_bucket);
} nf_event_buckets SEC(".maps");

/*
 * What a processor remembers, so as not to find it out again; see memo.h. Not
 * pinned: programs of another build may remember something else.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MAX_RULINGS);
	__type(key, __u32);
	__type(value, struct ruling);
} nf_rulings SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MAX_PASSES);
	__type(key, __u32);
	__type(value, struct pass);
} nf_passes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct clock);
} nf_clock SEC(".maps");

/* enum dns_setting → value */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, DNS_SETTINGS);
	__type(key, __u32);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} nf_dns SEC(".maps");

/*
 * Cookies of the other namespaces that the listeners have sockets in as well. Not
 * pinned: they end with the daemon, and the next one opens its own.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_ATTACHMENTS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, __u32);
} nf_dns_places SEC(".maps");

/* Index 0: the metrics. Changed only before the socket listens. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct protected_socket);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} nf_protected SEC(".maps");

/* Whom the sockets of cgroups believe to ask. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct dns_servers);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} nf_dns_sockets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_DNS_FLOWS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct dns_flow_key);
	__type(value, struct dns_flow);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} nf_dns_flows SEC(".maps");

/* Sockets of the daemon itself, exempt where it shares the filtered device. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} nf_exempt SEC(".maps");

#endif
