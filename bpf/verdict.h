/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Whether a packet may go where it is addressed, by the rules in force. */
#ifndef NETFENCE_VERDICT_H
#define NETFENCE_VERDICT_H

#include "event.h"
#include "learned.h"
#include "maps.h"
#include "parse.h"

#define PORT_DOT 853
#define PORT_MDNS 5353
#define PORT_LLMNR 5355
#define PORT_NETBIOS_NAMES 137
#define DHCP_CLIENT 68
#define DHCP_SERVER 67
#define DHCPV6_CLIENT 546
#define DHCPV6_SERVER 547
#define MAX_DISCOVERY_LENGTH 256 /* bytes; neighbour discovery must not carry a payload out */

#define ICMPV6_MLD_REPORT 131
#define ICMPV6_MLD_DONE 132
#define ICMPV6_ROUTER_SOLICITATION 133
#define ICMPV6_NEIGHBOUR_SOLICITATION 135
#define ICMPV6_NEIGHBOUR_ADVERTISEMENT 136
#define ICMPV6_MLD2_REPORT 143

/* Without branches, as same_address is. */
static __always_inline int is_ipv4(const struct address *a)
{
	return !(a->word[0] | a->word[1] | (a->word[2] ^ bpf_htonl(0xffff)));
}

static __always_inline int is_loopback(const struct address *a)
{
	if (is_ipv4(a))
		return (a->word[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000);
	return !(a->word[0] | a->word[1] | a->word[2] | (a->word[3] ^ bpf_htonl(1)));
}

static __always_inline int is_unspecified(const struct address *a)
{
	return !a->word[0] && !a->word[1] && !a->word[3] &&
	       (!a->word[2] || a->word[2] == bpf_htonl(0xffff));
}

static __always_inline int is_multicast(const struct address *a)
{
	if (is_ipv4(a)) /* 224.0.0.0/4, and 240.0.0.0/4 with the broadcast address */
		return (a->word[3] & bpf_htonl(0xe0000000)) == bpf_htonl(0xe0000000);
	return (a->word[0] & bpf_htonl(0xff000000)) == bpf_htonl(0xff000000);
}

/*
 * embedded_ipv4 finds the IPv4 destination that a translator or tunnel on the
 * way would take out of an IPv6 address: 64:ff9b::/96 (RFC 6052), 2002::/16
 * (RFC 3056) and ::/96 (RFC 4291 section 2.5.5.1) but :: and ::1.
 */
static __always_inline int embedded_ipv4(const struct address *a, struct address *inner)
{
	if (!((a->word[0] ^ bpf_htonl(0x0064ff9b)) | a->word[1] | a->word[2])) {
		set_ipv4(inner, a->word[3]);
		return 1;
	}
	if ((a->word[0] & bpf_htonl(0xffff0000)) == bpf_htonl(0x20020000)) {
		set_ipv4(inner,
			 bpf_htonl(bpf_ntohl(a->word[0]) << 16 | bpf_ntohl(a->word[1]) >> 16));
		return 1;
	}
	if (!(a->word[0] | a->word[1] | a->word[2]) && bpf_ntohl(a->word[3]) > 1) {
		set_ipv4(inner, a->word[3]);
		return 1;
	}
	return 0;
}

static __always_inline int speaks(const struct clause *c, struct packet *p)
{
	if (c->deadline) {
		p->timed = 1;
		if (boot_clock() >= c->deadline)
			return 0;
	}
	if (p->ports_only && c->match == MATCH_ANY && c->verdict == VERDICT_ALLOW)
		return 0;
	return matches(c->match, c->first, c->last, p);
}

static __always_inline enum reason said(const struct clause *c, struct packet *p)
{
	if (c->verdict == VERDICT_ALLOW)
		return REASON_NONE;
	if (c->verdict == VERDICT_NONE)
		return REASON_NO_RULE;
	p->rule = c->rule;
	return c->guard ? REASON_GUARD : REASON_RULE;
}

struct chain {
	struct packet *packet;
	__u32 slot;
	__u32 next;
	enum reason reason;
};

/* The inner map is looked up for each step: few packets come here, and for few steps. */
static long walk_chain(__u32 i, struct chain *chain)
{
	const struct clause *c;
	void *clauses = bpf_map_lookup_elem(&nf_clauses, &chain->slot);

	if (!clauses)
		return 1;
	c = bpf_map_lookup_elem(clauses, &chain->next);
	if (!c)
		return 1;
	if (speaks(c, chain->packet)) {
		chain->reason = said(c, chain->packet);
		return 1;
	}
	chain->next = c->next;
	if (chain->next)
		return 0;
	chain->reason = REASON_NO_RULE;
	return 1;
}

/*
 * by_rules looks the destination up in the slot's table. NONE: a rule allows
 * it; RULE, GUARD: p->rule denies it; NO_RULE: none speaks of it. Slot 0 has no
 * rules by design; any other slot without a table is a fault, and a drop.
 */
__attribute__((noinline)) int by_rules(__u32 slot, struct packet *p,
				       const struct address *destination)
{
	struct prefix key = { .length = 128 };
	struct chain chain = { .packet = p, .slot = slot, .reason = REASON_NO_TABLE };
	const struct clause *c;
	void *table;

	if (!p || !destination)
		return REASON_NO_TABLE;
	if (!slot)
		return REASON_NO_RULE;
	key.address = *destination;
	table = bpf_map_lookup_elem(&nf_tables, &slot);
	if (!table)
		return REASON_NO_TABLE;
	c = bpf_map_lookup_elem(table, &key);
	if (!c)
		return REASON_NO_RULE;
	if (speaks(c, p))
		return said(c, p);
	chain.next = c->next;
	if (!chain.next)
		return REASON_NO_RULE;
	bpf_loop(MAX_CHAIN, walk_chain, &chain, 0);
	return chain.reason;
}

static __always_inline int asks_rules(__u64 word)
{
	return WORD_MODE(word) == MODE_ALLOWLIST || WORD_MODE(word) == MODE_DENYLIST;
}

/* silence is the verdict of the modes that have no rules. */
static __always_inline enum reason silence(__u64 word)
{
	return WORD_MODE(word) == MODE_DISABLED ? REASON_NONE : REASON_MODE;
}

/*
 * resolves_names is true for the protocols by which a host could learn addresses
 * that Netfence has not: DNS over TLS and QUIC (RFC 7858, RFC 9250), multicast
 * DNS (RFC 6762), LLMNR (RFC 4795) and NetBIOS names (RFC 1002).
 */
static __always_inline int resolves_names(const struct packet *p)
{
	if (p->portless)
		return 0;
	if (p->protocol == IPPROTO_TCP)
		return p->dst_port == PORT_DOT || p->dst_port == PORT_LLMNR;
	if (p->protocol == IPPROTO_UDP)
		return p->dst_port == PORT_DOT || p->dst_port == PORT_LLMNR ||
		       p->dst_port == PORT_MDNS || p->dst_port == PORT_NETBIOS_NAMES;
	return 0;
}

/* bypasses_names is true for what only a rule that names its port lets pass. */
static __always_inline int bypasses_names(__u64 word, const struct packet *p)
{
	return asks_rules(word) && word & WORD_DNS && resolves_names(p);
}

/* What names may open is asked for in this mode alone. */
static __always_inline __u32 lessons_for(__u64 word, __u32 attachment)
{
	if (WORD_MODE(word) != MODE_ALLOWLIST || !(word & WORD_DNS))
		return 0;
	return lessons_of(attachment);
}

/* judge_address asks the rules, then the mode, then what was learned. */
static __always_inline enum reason judge_address(struct learning *learning, struct packet *p,
						 const struct address *destination)
{
	learning->name = 0;
	p->ruled = REASON_NO_RULE;
	if (!p->unruled)
		p->ruled = by_rules(WORD_SLOT(learning->word), p, destination);
	if (p->ruled != REASON_NO_RULE)
		return p->ruled;
	if (p->ports_only)
		return REASON_NAME_PROTOCOL;
	if (WORD_MODE(learning->word) == MODE_DENYLIST)
		return REASON_NONE;
	if (learning->lessons && !p->unopened && by_learned(learning, p, destination))
		return REASON_NONE;
	return REASON_NO_RULE;
}

/*
 * judge is the verdict by destination, of the rules and the mode that has them. What
 * a translator would unwrap must be permitted inside as well as outside, and is
 * denied if it is denied on either side. Where a name was needed, learning->name
 * tells which; 0 if two different ones were.
 */
static __always_inline enum reason judge(struct learning *learning, struct packet *p)
{
	enum reason outside, inside;
	struct address inner;
	__u32 name;

	learning->lessons = lessons_for(learning->word, learning->attachment);
	p->ports_only = bypasses_names(learning->word, p);
	p->timed = 0;
	outside = judge_address(learning, p, &p->dst);
	if ((outside != REASON_NONE && outside != REASON_NO_RULE) ||
	    !embedded_ipv4(&p->dst, &inner))
		return outside;
	name = learning->name;
	inside = judge_address(learning, p, &inner);
	p->timed = 1; /* two answers are kept as none */
	learning->deadline = 0; /* likewise of two grants */
	if (inside != REASON_NONE && inside != REASON_NO_RULE)
		return inside;
	if (!learning->name)
		learning->name = name;
	else if (name && name != learning->name)
		learning->name = 0;
	return outside ? outside : inside;
}

/* judge_apart is judge where there is no packet, or not its first time, to be quick for. */
__attribute__((noinline)) int judge_apart(struct learning *learning, struct packet *p)
{
	if (!learning || !p)
		return REASON_NO_TABLE;
	return judge(learning, p);
}

/* guarded is judge in the modes that have no rules: only the guard is above them. */
static __always_inline enum reason guarded(struct learning *learning, struct packet *p)
{
	enum reason reason = judge_apart(learning, p);

	return reason == REASON_NO_RULE ? silence(learning->word) : reason;
}

static __always_inline int on_link(__u64 identity, const struct address *a)
{
	struct onlink_key key = {
		.length = 8 * (sizeof(key) - sizeof(key.length)),
		.incarnation = IDENTITY_INCARNATION(identity),
		.address = *a,
	};

	return !!bpf_map_lookup_elem(&nf_onlink, &key);
}

/*
 * configures is true for what a host must send before it can send anything
 * else: DHCP to everyone, neighbour discovery and MLD on the link. Router
 * advertisements and redirects are not among it: they configure others.
 */
static __always_inline int configures(__u64 identity, const struct packet *p)
{
	int link_local, link_multicast;

	if (p->arp)
		return 1;
	if (p->fragment || p->extended)
		return 0;
	if (p->protocol == IPPROTO_UDP) {
		if (is_ipv4(&p->dst))
			return p->dst.word[3] == bpf_htonl(0xffffffff) &&
			       p->src_port == DHCP_CLIENT && p->dst_port == DHCP_SERVER;
		return p->dst.word[0] == bpf_htonl(0xff020000) && !p->dst.word[1] &&
		       !p->dst.word[2] && p->dst.word[3] == bpf_htonl(0x00010002) &&
		       p->src_port == DHCPV6_CLIENT && p->dst_port == DHCPV6_SERVER;
	}
	if (p->protocol != IPPROTO_ICMPV6 || is_ipv4(&p->dst) || p->length > MAX_DISCOVERY_LENGTH)
		return 0;
	link_multicast = (p->dst.word[0] & bpf_htonl(0xffff0000)) == bpf_htonl(0xff020000);
	link_local = (p->dst.word[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
	switch (p->icmp_type) {
	case ICMPV6_ROUTER_SOLICITATION:
		return p->hop_limit == 255 && (link_multicast || link_local);
	case ICMPV6_NEIGHBOUR_SOLICITATION:
	case ICMPV6_NEIGHBOUR_ADVERTISEMENT:
		return p->hop_limit == 255 &&
		       (link_multicast || link_local || on_link(identity, &p->dst));
	case ICMPV6_MLD_REPORT:
	case ICMPV6_MLD_DONE:
	case ICMPV6_MLD2_REPORT:
		return p->hop_limit == 1 && link_multicast;
	}
	return 0;
}

static __always_inline __u64 policy_word(__u32 attachment)
{
	/* one load: a packet sees one policy, whole */
	volatile __u64 *word = bpf_map_lookup_elem(&nf_words, &attachment);

	return word ? *word : 0;
}

static __always_inline int lease_is_over(void)
{
	__u32 lease = META_LEASE;
	volatile __u64 *end = bpf_map_lookup_elem(&nf_meta, &lease);

	return end && *end && boot_clock() >= *end;
}

/* word_in_force: a leased policy whose lease is over is block-all, without a guard. */
static __always_inline __u64 word_in_force(__u32 attachment)
{
	__u64 word = policy_word(attachment);

	if (word & WORD_LEASED && lease_is_over())
		return word & ~0xffffffffULL;
	return word;
}

static __always_inline void tally(void *map, __u32 attachment, enum reason reason)
{
	__u32 index = attachment * MAX_REASONS + reason;
	__u64 *packets = bpf_map_lookup_elem(map, &index);

	if (packets)
		__sync_fetch_and_add(packets, 1);
}

/*
 * settle counts a packet, tells of it if the policy is against it, and returns why
 * it is dropped. What p does not know of the packet is 0.
 */
static __always_inline enum reason settle(__u64 identity, __u64 word, enum reason reason,
					  __u32 bytes, const struct packet *p)
{
	__u32 attachment = IDENTITY_ATTACHMENT(identity);
	struct counters *counters = bpf_map_lookup_elem(&nf_counters, &attachment);
	int audited = reason && is_audited(word, reason);

	if (!counters)
		return REASON_UNATTACHED;
	if (!reason || audited) {
		counters->allowed_packets++;
		counters->allowed_bytes += bytes;
		if (!reason)
			return REASON_NONE;
		tally(&nf_audited, attachment, reason);
	} else {
		counters->dropped_packets++;
		counters->dropped_bytes += bytes;
		tally(&nf_drops, attachment, reason);
	}
	if (event_interval && identity)
		tell(identity, word, reason, bytes, p);
	return audited ? REASON_NONE : reason;
}

#endif
