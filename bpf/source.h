/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Whether a packet comes from whom the policy's source list names. What ARP and
 * neighbour discovery claim is a source too: others will send to it.
 */
#ifndef NETFENCE_SOURCE_H
#define NETFENCE_SOURCE_H

#include "verdict.h"

#define ETHER_SOURCE 6 /* offset in a frame */
#define ETHER_LENGTH 6
#define ARP_ETHERNET_IPV4 0x00010800 /* hardware and protocol (RFC 826) */
#define ARP_SENDER 8 /* offset: hardware address, then protocol address */
#define ND_TARGET 8 /* offset, in solicitation and advertisement (RFC 4861) */
#define ND_OPTIONS 24 /* offset, likewise */
#define ND_OPTIONS_ROUTER 8 /* in a router solicitation */
#define ND_OPTION_SOURCE 1
#define ND_OPTION_TARGET 2
#define MAX_ND_OPTIONS 8

/* One look through the list of a slot: for an address, or for a MAC address. */
struct source_search {
	struct address address;
	__u8 mac[ETHER_LENGTH];
	__u8 kind; /* enum source_kind */
	__u8 listed; /* there are any of the kind */
	__u8 found;
	__u32 slot;
};

static __always_inline int in_prefix(const struct source *s, const struct address *a)
{
	return !(((a->word[0] & s->mask.word[0]) ^ s->address.word[0]) |
		 ((a->word[1] & s->mask.word[1]) ^ s->address.word[1]) |
		 ((a->word[2] & s->mask.word[2]) ^ s->address.word[2]) |
		 ((a->word[3] & s->mask.word[3]) ^ s->address.word[3]));
}

static __always_inline int same_mac(const __u8 *a, const __u8 *b)
{
	__u8 difference = 0;

	for (int i = 0; i < ETHER_LENGTH; i++)
		difference |= a[i] ^ b[i];
	return !difference;
}

static long search_source(__u32 i, struct source_search *search)
{
	void *sources = bpf_map_lookup_elem(&nf_sources, &search->slot);
	const struct source *s;

	if (!sources)
		return 1;
	s = bpf_map_lookup_elem(sources, &i);
	if (!s || s->kind == SOURCE_END)
		return 1;
	if (s->kind != search->kind)
		return 0;
	search->listed = 1;
	if (search->kind == SOURCE_PREFIX)
		search->found = in_prefix(s, &search->address);
	else
		search->found = same_mac(s->mac, search->mac);
	return search->found;
}

/* Where none of the kind is listed, any is good. */
static __always_inline int source_listed(struct source_search *search)
{
	search->listed = 0;
	search->found = 0;
	bpf_loop(MAX_SOURCES, search_source, search, 0);
	return search->found || !search->listed;
}

__attribute__((noinline)) int mac_listed(struct __sk_buff *skb, __u32 slot, __u32 offset)
{
	struct source_search search = { .slot = slot, .kind = SOURCE_MAC };

	if (!skb || bpf_skb_load_bytes(skb, offset, search.mac, ETHER_LENGTH))
		return 0;
	return source_listed(&search);
}

__attribute__((noinline)) int address_listed(__u32 slot, const struct address *a)
{
	struct source_search search = { .slot = slot, .kind = SOURCE_PREFIX };

	if (!a)
		return 0;
	search.address = *a;
	return source_listed(&search);
}

struct nd_walk {
	struct __sk_buff *skb;
	__u32 slot;
	__u32 offset;
	__u32 forged;
};

static long walk_nd_option(__u32 i, struct nd_walk *walk)
{
	__u8 option[2]; /* type, length in units of 8 bytes */

	if (walk->offset > 4096 || bpf_skb_load_bytes(walk->skb, walk->offset, option, 2))
		return 1;
	if (!option[1])
		return 1;
	if ((option[0] == ND_OPTION_SOURCE || option[0] == ND_OPTION_TARGET) &&
	    !mac_listed(walk->skb, walk->slot, walk->offset + 2)) {
		walk->forged = 1;
		return 1;
	}
	walk->offset += option[1] * 8;
	return 0;
}

static __always_inline int is_link_local(const struct address *a)
{
	return (a->word[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

static __always_inline int arp_holds(struct __sk_buff *skb, __u32 slot, const struct packet *p)
{
	struct address sender;
	__be32 address;
	__be32 types;

	if (bpf_skb_load_bytes(skb, p->transport, &types, sizeof(types)) ||
	    types != bpf_htonl(ARP_ETHERNET_IPV4) ||
	    !mac_listed(skb, slot, p->transport + ARP_SENDER) ||
	    bpf_skb_load_bytes(skb, p->transport + ARP_SENDER + ETHER_LENGTH, &address,
			       sizeof(address)))
		return 0;
	set_ipv4(&sender, address);
	return !address || address_listed(slot, &sender); /* 0.0.0.0: a probe (RFC 5227) */
}

static __always_inline int nd_holds(struct __sk_buff *skb, __u32 slot, const struct packet *p)
{
	struct nd_walk walk = { .skb = skb, .slot = slot, .offset = p->transport + ND_OPTIONS };
	struct address target;

	if (p->icmp_type == ICMPV6_ROUTER_SOLICITATION)
		walk.offset = p->transport + ND_OPTIONS_ROUTER;
	bpf_loop(MAX_ND_OPTIONS, walk_nd_option, &walk, 0);
	if (walk.forged)
		return 0;
	if (p->icmp_type != ICMPV6_NEIGHBOUR_ADVERTISEMENT)
		return 1;
	return !bpf_skb_load_bytes(skb, p->transport + ND_TARGET, &target, sizeof(target)) &&
	       (is_link_local(&target) || address_listed(slot, &target));
}

/*
 * source_holds is asked about what came in at a device (network is where its IP or
 * ARP header begins, 0: without a link-layer header, or of a cgroup). What a host
 * sends before it has an address comes from none, or from a link-local one.
 */
__attribute__((noinline)) int source_holds(struct __sk_buff *skb, __u64 identity, __u32 slot,
					   __u32 headerless, const struct packet *p)
{
	if (!skb || !p)
		return 0;
	if (!headerless && !mac_listed(skb, slot, ETHER_SOURCE))
		return 0;
	if (p->arp)
		return arp_holds(skb, slot, p);
	if (!address_listed(slot, &p->src) &&
	    !(configures(identity, p) && (is_unspecified(&p->src) || is_link_local(&p->src))))
		return 0;
	if (headerless || p->protocol != IPPROTO_ICMPV6 || p->fragment)
		return 1;
	switch (p->icmp_type) {
	case ICMPV6_ROUTER_SOLICITATION:
	case ICMPV6_NEIGHBOUR_SOLICITATION:
	case ICMPV6_NEIGHBOUR_ADVERTISEMENT:
		return nd_holds(skb, slot, p);
	}
	return 1;
}

#endif
