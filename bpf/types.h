/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What C and Go agree on. bpf2go turns these types into Go (see
 * internal/datapath/generate.go), so each has explicit padding and no pointers.
 * Any change here that an older daemon would misread is a new ABI version.
 */
#ifndef NETFENCE_TYPES_H
#define NETFENCE_TYPES_H

#include <linux/types.h>

enum limit {
	MAX_ATTACHMENTS = 32768 + 1, /* attachment 0 is nobody: it counts what has no attachment */
	MAX_SLOTS = 65536, /* tables in use, being built and cooling down */
	MAX_FLOWS = 1048576,
	META_LEASE = 1, /* in nf_meta */
	MAX_CHAIN = 128, /* policy.MaxChain */
	MAX_LEARNED = 1048576, /* chunks of grants, of all attachments */
	MAX_NAMES = 262144,
	GRANTS_PER_CHUNK = 4,
	MAX_CHUNKS = 64, /* per address */
	MAX_NAME = 253, /* bytes, without the final dot */
	MAX_REASONS = 32,
	UNNOTED_FLOWS = MAX_REASONS - 1, /* in nf_drops, though no drop: flows beyond the limit */
	WORD_SLOT_SHIFT = 12,
	WORD_SLOT_MASK = 0xfffff,
	DNS_SERVERS = 8, /* that one socket may ask at a time */
	DNS_INDEX_BITS = 19,
	DNS_SETS = 128, /* of DNS_WAYS flows, for each attachment */
	DNS_WAYS = 8,
	MAX_DNS_FLOWS = 1048576,
	MAX_SOURCES = 64, /* policy.maxSources */
	INTERFACE_PLACES = 32768,
	MAX_RULINGS = 2048, /* for each processor; a power of 2 */
	MAX_PASSES = 1024, /* likewise */
	MAX_ONLINK = 262144, /* prefixes, of all attachments */
};

/* An address of either family in network order; IPv4 is ::ffff:a.b.c.d. */
struct address {
	__be32 word[4];
};

/* policy.Mode. Zero, the value of an unset word, is the closed one. */
enum mode {
	MODE_BLOCK_ALL,
	MODE_ALLOWLIST,
	MODE_DENYLIST,
	MODE_DISABLED,
};

/*
 * The policy word of an attachment: everything that a packet needs to know of
 * the policy in force, in one aligned store. The generation only ever grows,
 * also when the attachment's index is used again.
 */
#define WORD_MODE(word) ((word)&0x7)
#define WORD_GENERATION(word) ((__u32)((word) >> 32))
#define WORD_SLOT(word) (((word) >> WORD_SLOT_SHIFT) & WORD_SLOT_MASK)
enum word_flag {
	WORD_LEASED = 1 << 3, /* in force until the lease is over, then block-all */
	WORD_REPLIES = 1 << 4, /* reply flows are permitted */
	WORD_DNS = 1 << 5, /* DNS queries are intercepted; block-all does so without it */
	WORD_LOOPBACK_ALLOW = 1 << 6, /* neither bit: own */
	WORD_LOOPBACK_DENY = 1 << 7,
	WORD_AUDIT = 1 << 8, /* what the policy would drop passes */
	WORD_REPLIES_UDP = 1 << 9, /* the slot lists ports whose inbound datagrams are answered */
	WORD_SOURCE = 1 << 10, /* the slot lists what may be sent from */
	WORD_CONFIGURES =
		1 << 11, /* block-all, but the guard lets something pass: see configures() */
};

enum attachment_flag {
	ATTACHMENT_INTERFACE = 1 << 0, /* else a cgroup */
	ATTACHMENT_EGRESS = 1 << 1, /* outbound packets leave by the device's egress */
	ATTACHMENT_HEADERLESS = 1 << 2, /* the device has no link-layer header */
};

/* Who an attachment is. incarnation 0: this index is free. */
struct attachment {
	__u8 id[16]; /* UUID */
	__u64 scope; /* interface: netns cookie; cgroup: cgroup id */
	__u32 ifindex; /* cgroup: 0 */
	__u32 level; /* cgroup: depth below the root */
	__u32 incarnation; /* never reused */
	__u32 flags; /* enum attachment_flag */
};

/* Interface identity. An ifindex means something only together with its namespace. */
struct interface_key {
	__u64 netns;
	__u32 ifindex;
	__u32 pad;
};

/*
 * A place of nf_interface_places: the identity that nf_interfaces has for the
 * same pair, found without a hash. A device finds its place by its ifindex; where
 * two have the same, one of them is in nf_interfaces alone.
 */
struct interface_place {
	__u64 identity;
	__u64 netns;
	__u32 ifindex;
	__u32 pad;
};

/* identity: attachment in the low half, incarnation in the high half. 0: unconfigured. */
#define IDENTITY_ATTACHMENT(identity) ((__u32)(identity))
#define IDENTITY_INCARNATION(identity) ((__u32)((identity) >> 32))

/* An IPv6 prefix on the link of an interface: its addresses are reached without a router. */
struct onlink_key {
	__u32 length; /* bits, those of the incarnation included */
	__u32 incarnation;
	struct address address;
};

struct prefix {
	__u32 length; /* bits; an IPv4 /n has 96+n */
	struct address address;
};

/* policy.Match */
enum match {
	MATCH_ANY = 0, /* every protocol, fragments included */
	MATCH_TCP = 6,
	MATCH_UDP = 17,
	MATCH_TCP_UDP = 255,
};

/* policy.ClauseVerdict */
enum clause_verdict {
	VERDICT_DENY,
	VERDICT_ALLOW,
	VERDICT_NONE, /* no rule speaks: the mode decides */
};

/*
 * One step of the answer for a prefix, policy.Clause. A clause that does not
 * speak of the packet hands on to next, and so on to the covering prefixes.
 */
struct clause {
	__u64 deadline; /* bpf_ktime_get_boot_ns(); 0: never */
	__u16 first; /* ports, host order */
	__u16 last;
	__u8 match; /* enum match */
	__u8 verdict; /* enum clause_verdict */
	__u8 guard; /* of the daemon's own configuration, above every mode */
	__u8 pad;
	__u32 next; /* index into the clauses of the same slot; 0: VERDICT_NONE */
	__u32 rule; /* 1-based, allow rules first */
};

enum source_kind {
	SOURCE_END, /* of the list */
	SOURCE_PREFIX,
	SOURCE_MAC,
};

/* policy.Source */
struct source {
	struct address address; /* masked */
	struct address mask;
	__u8 mac[6];
	__u8 kind; /* enum source_kind */
	__u8 pad;
};

/* What a slot holds, so that a restarted daemon knows it again. */
struct slot_content {
	__u8 hash[32]; /* policy.Table.Hash */
};

/* Why a packet is dropped. Append only: the numbers are counted in pinned maps. */
enum reason {
	REASON_NONE, /* it passes */
	REASON_MODE, /* block-all, or no policy yet */
	REASON_NO_RULE, /* allowlist: no rule allows the destination */
	REASON_RULE, /* a deny rule */
	REASON_LOOPBACK, /* loopback address off lo, or a service on lo that is not the workload's */
	REASON_UNATTACHED, /* nobody is known behind this interface or cgroup */
	REASON_NO_TABLE, /* the rules are missing or their chain does not end */
	REASON_NOT_IP, /* neither IP nor ARP */
	REASON_VLAN_DEPTH, /* more than two VLAN tags */
	REASON_TRUNCATED, /* a header is cut off */
	REASON_MALFORMED,
	REASON_SOURCE_ROUTE, /* IPv4 option LSRR or SSRR */
	REASON_ROUTING_HEADER, /* IPv6, segments left */
	REASON_EXTENSION_HEADERS, /* IPv6, more than we walk */
	REASON_NAME_PROTOCOL, /* resolves names past the interception */
	REASON_DNS, /* a query that was not intercepted */
	REASON_GUARD, /* the guard denies it, in every mode */
	REASON_SOURCE, /* the source, or what ARP or neighbour discovery claims, is not the workload's */
	REASON_PROTECTED, /* the daemon's own: its metrics, or somebody else's DNS address, in every mode */
};

/* A socket of the daemon that no workload is to reach. */
struct protected_socket {
	struct address address; /* zero: every address of the host */
	__u64 netns; /* cookie of the namespace that it is in */
	__u32 port; /* TCP; 0: there is none */
	__u32 pad;
};

/*
 * What the rules that a policy word names say of a destination. They never change,
 * so this holds for as long as the word does.
 */
struct ruling {
	__u32 sequence; /* odd: being written; see memo.h */
	__u32 incarnation;
	__u64 word;
	struct address address;
	__u32 rule; /* as struct packet has it */
	__u32 lessons; /* of the attachment, up to which no name opened it; 0: not looked */
	__u16 port;
	__u8 protocol;
	__u8 reason; /* enum reason */
	__u32 pad;
};

/* A flow that passes by a name, and is noted in nf_flows, until a time. */
struct pass {
	__u32 sequence;
	__u32 incarnation;
	__u64 word;
	__u64 until; /* jiffies */
	struct address src;
	struct address dst;
	__u16 src_port;
	__u16 dst_port;
	__u8 protocol;
	__u8 pad[3];
};

/* The boot clock as it was at a tick: reading it costs more than a verdict. */
struct clock {
	__u64 tick; /* jiffies */
	__u64 boot; /* bpf_ktime_get_boot_ns() */
};

struct counters {
	__u64 allowed_packets;
	__u64 allowed_bytes;
	__u64 dropped_packets;
	__u64 dropped_bytes;
};

/*
 * A packet that was dropped, or a connection that was refused before there was
 * one. What is not known is 0: addresses where the packet was not understood,
 * the source before there is a packet. Ports of protocols that have none are 0.
 */
struct event {
	__u64 time; /* bpf_ktime_get_boot_ns() */
	__u64 identity;
	__u64 lost; /* events of the attachment, since it was attached or the daemon started */
	struct address src;
	struct address dst;
	__u32 length; /* bytes */
	__u16 src_port; /* host order; echo: the identifier */
	__u16 dst_port;
	__u32 rule; /* that denied it, as struct clause has it; of the guard's if reason says so */
	__u8 protocol; /* IANA */
	__u8 reason; /* enum reason */
	__u8 would_deny; /* it passed, for the policy's audit */
	__u8 pad;
	__u32 generation; /* of the policy word */
	__u32 pad2;
};

/* How fast an attachment may cause events. */
struct event_bucket {
	__u64 due; /* nanoseconds of the tick clock up to which the rate is used up */
	__u64 lost;
};

/*
 * A name that was asked for, and why its addresses may be reached. Ids are never
 * used again within an incarnation. To cut a name is to name the generation of
 * the policy word from which on it is no more: all packets that see that word, or
 * a later one, see the name cut, and none before.
 */
struct name_key {
	__u32 incarnation;
	__u32 id; /* never 0 */
};

struct name {
	struct name_key key; /* see learned.h */
	__u64 learned; /* last; bpf_ktime_get_boot_ns() */
	__u64 used; /* by a flow, as nf_flows_end last saw it, which alone writes it; 0: never */
	__u64 grant; /* policy.Grant.Key */
	__u32 cut; /* generation; 0: not cut */
	__u8 proxy; /* the control plane has decided, not a rule */
	__u8 length; /* of the text */
	__u8 text[MAX_NAME]; /* lower case, no final dot */
	__u8 pad[5];
};

/* An address is open while a grant lives: not past its deadline, its name not cut. */
struct grant {
	__u64 deadline; /* bpf_ktime_get_boot_ns(); 0: an empty place */
	__u32 name;
	__u16 first; /* ports, host order */
	__u16 last;
	__u8 match; /* enum match */
	__u8 pad[7];
};

struct learned_key {
	struct address address;
	__u32 incarnation;
	__u32 chunk; /* 0, 1, … without a gap */
};

struct learned {
	struct learned_key key; /* see learned.h */
	struct grant grants[GRANTS_PER_CHUNK];
};

/*
 * A flow outlives what has opened it. A reply flow: somebody outside has, so its
 * answers may leave. A learned flow: the workload has, while the address was
 * open by name; the two never share an entry. Keyed by incarnation, never by
 * attachment: a recycled index inherits nothing.
 */
struct flow_key {
	struct address local; /* the workload's */
	struct address remote;
	__u32 incarnation;
	__u16 local_port; /* host order; echo: the identifier */
	__u16 remote_port; /* echo: 0 */
	__u8 protocol;
	__u8 loopback; /* through lo: permits nothing on any other device */
	__u8 learned; /* a learned flow */
	__u8 pad;
};

struct flow {
	__u64 deadline; /* bpf_ktime_get_boot_ns() */
	__u32 owner; /* attachment, and above it the key's local port; see flow_find */
	__u32 name; /* learned flow: by which its last packet was permitted */
};

#define FLOW_OWNER(attachment, port) ((__u32)(port) << 16 | (attachment))
#define FLOW_ATTACHMENT(owner) ((owner)&0xffff)
#define FLOW_PORT(owner) ((owner) >> 16)
_Static_assert(MAX_ATTACHMENTS <= 1 << 16, "an attachment does not fit a flow's owner");

/* Argument of the program that ends flows. */
struct flows_query {
	__u32 attachment; /* 0: all */
	__u32 ended; /* out: how many */
};

#endif
