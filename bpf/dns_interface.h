/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Queries of interfaces. They are handed to a network namespace of the daemon's,
 * through a veth, with a source address that says whose they are: two workloads
 * may well have the same. Its answers are led back from the other end of the
 * veth. Neither passes the host's routing, bridging or firewall.
 */
#ifndef NETFENCE_DNS_INTERFACE_H
#define NETFENCE_DNS_INTERFACE_H

#include "dns.h"
#include "kernel.h"

#define DNS_FLOW_UDP (10 * SECOND)
#define DNS_FLOW_TCP (120 * SECOND) /* since the workload's last packet */
enum hook {
	HOOK_HEADERLESS = 1, /* the device's packets begin with the network header */
	HOOK_INGRESS = 2,
};
#define MACS 12 /* bytes: destination, source */
#define PACKET_HOST 0 /* linux/if_packet.h */
#define DNS_MAC                               \
	{                                     \
		0x02, 'N', 'F', 'D', 'N', 'S' \
	} /* of the namespace's end of the veth */

/*
 * Addresses for resolver configurations: nobody's, so that they lead along the
 * default route. They are answered also while DNS is not filtered.
 */
static __always_inline int is_nameserver(const struct address *a)
{
	if (is_ipv4(a))
		return a->word[3] == bpf_htonl(0xc0000235); /* 192.0.2.53 */
	return a->word[0] == DNS_ULA && a->word[1] == bpf_htonl(0x4e550000) && !a->word[2] &&
	       a->word[3] == bpf_htonl(0x53);
}

/*
 * A query comes from 240.0.0.0/8 or fd4e:4644:4e54::/64, way:3|index:19: clients of
 * one attachment that share port and server are in different ways of their set.
 */
static __always_inline void dns_client(struct address *a, int ipv4, const struct dns_flow_key *key)
{
	__u32 low = (__u32)key->way << DNS_INDEX_BITS | key->attachment;

	if (ipv4) {
		set_ipv4(a, bpf_htonl(0xf0000000 | low));
		return;
	}
	a->word[0] = DNS_ULA;
	a->word[1] = bpf_htonl(0x4e540000);
	a->word[2] = 0;
	a->word[3] = bpf_htonl(low);
}

static __always_inline int is_dns_client(const struct address *a)
{
	if (is_ipv4(a))
		return (a->word[3] & bpf_htonl(0xff000000)) == bpf_htonl(0xf0000000);
	return a->word[0] == DNS_ULA && a->word[1] == bpf_htonl(0x4e540000) && !a->word[2];
}

/* A workload that finds flows of the same set throws out only its own. */
static __always_inline __u16 dns_set(const struct address *server, __u16 port, __u8 protocol)
{
	__u32 hash = (__u32)protocol << 16 | port;

	for (int i = 0; i < 4; i++)
		hash = (hash ^ server->word[i]) * 0x9e3779b1;
	return (hash >> 16) % DNS_SETS;
}

/*
 * dns_flow_place gives a flow its place in key's set: the one it has, or that which
 * is over, or was quiet, for longest.
 */
__attribute__((noinline)) int dns_flow_place(const struct dns_flow *flow, struct dns_flow_key *key)
{
	__u64 oldest = ~0ULL;
	struct dns_flow_key at;
	__u16 best = 0;

	if (!flow || !key)
		return -1;
	at = *key; /* before Linux 6.2 no argument can be a map's key */
	for (__u16 way = 0; way < DNS_WAYS; way++) {
		struct dns_flow *found;

		at.way = way;
		found = bpf_map_lookup_elem(&nf_dns_flows, &at);
		if (!found || found->incarnation != flow->incarnation) {
			if (oldest)
				best = way;
			oldest = 0;
			continue;
		}
		if (found->client_port == flow->client_port && found->protocol == flow->protocol &&
		    same_address(&found->client, &flow->client) &&
		    same_address(&found->server, &flow->server)) {
			best = way;
			break;
		}
		if (found->deadline < oldest) {
			oldest = found->deadline;
			best = way;
		}
	}
	key->way = best;
	return 0;
}

static __always_inline int dns_flow_note(__u64 identity, const struct packet *p, const __u8 *macs,
					 struct dns_flow_key *key)
{
	struct dns_flow flow = {
		.client = p->src,
		.server = p->dst,
		.incarnation = IDENTITY_INCARNATION(identity),
		.client_port = p->src_port,
		.protocol = p->protocol,
	};

	flow.deadline = boot_clock() + (p->protocol == IPPROTO_TCP ? DNS_FLOW_TCP : DNS_FLOW_UDP);
	__builtin_memcpy(flow.macs, macs, MACS);
	key->attachment = IDENTITY_ATTACHMENT(identity);
	key->set = dns_set(&p->dst, p->src_port, p->protocol);
	if (dns_flow_place(&flow, key))
		return -1;
	return bpf_map_update_elem(&nf_dns_flows, key, &flow, BPF_ANY);
}

/*
 * dns_readdress puts another source (or destination) in place. Checksums that
 * are left to the device hold the pseudo header, and are kept right as well.
 */
__attribute__((noinline)) int dns_readdress(struct __sk_buff *skb, __u32 network,
					    const struct packet *p, int destination,
					    struct address *to)
{
	__u64 flags = BPF_F_PSEUDO_HDR;
	struct address from;
	__s64 difference;
	__u32 checksum;

	if (!p || !to)
		return -1;
	from = destination ? p->dst : p->src;
	checksum = p->transport + (p->protocol == IPPROTO_TCP ? 16 : 6);

	if (p->protocol == IPPROTO_UDP)
		flags |= BPF_F_MARK_MANGLED_0; /* none stays none */
	if (is_ipv4(&from)) {
		if (bpf_l4_csum_replace(skb, checksum, from.word[3], to->word[3], flags | 4) ||
		    bpf_l3_csum_replace(skb, network + 10, from.word[3], to->word[3], 4))
			return -1;
		return bpf_skb_store_bytes(skb, network + (destination ? 16 : 12), &to->word[3], 4,
					   0);
	}
	difference = bpf_csum_diff(from.word, sizeof(from), to->word, sizeof(*to), 0);
	if (difference < 0 || bpf_l4_csum_replace(skb, checksum, 0, difference, flags))
		return -1;
	return bpf_skb_store_bytes(skb, network + (destination ? 24 : 8), to, sizeof(*to), 0);
}

/*
 * dns_frame makes a packet that is on its way out one for the namespace's end of the
 * veth: other than what is handed to its peer, it comes there as from a wire.
 */
static __always_inline int dns_frame(struct __sk_buff *skb, int headerless, int ipv4)
{
	struct ethhdr frame = {
		.h_dest = DNS_MAC,
		.h_proto = ipv4 ? bpf_htons(ETH_P_IP) : bpf_htons(ETH_P_IPV6),
	};

	if (headerless && bpf_skb_change_head(skb, sizeof(frame), 0))
		return -1;
	return bpf_skb_store_bytes(skb, 0, &frame, sizeof(frame), 0);
}

/*
 * dns_hand_over makes a query the listener's. Tags, options, extension headers
 * and fragments are no resolver's. The caller redirects to *ifindex.
 */
__attribute__((noinline)) int dns_hand_over(struct __sk_buff *skb, __u64 identity, __u32 hook,
					    const struct packet *p, __u32 *ifindex)
{
	int headerless = hook & HOOK_HEADERLESS, ingress = hook & HOOK_INGRESS;
	__u32 network = headerless ? 0 : ETH_HLEN;
	struct dns_flow_key key = {};
	struct address client;
	__u8 macs[MACS] = {};
	int ipv4;

	if (!p || !ifindex)
		return REASON_DNS;
	ipv4 = is_ipv4(&p->src);
	*ifindex = dns_setting(DNS_IFINDEX);
	if (!*ifindex || skb->vlan_present ||
	    p->transport != network + (ipv4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr)))
		return REASON_DNS;
	if (ipv4) {
		__be16 fragment;

		if (bpf_skb_load_bytes(skb, network + 6, &fragment, sizeof(fragment)) ||
		    fragment & bpf_htons(MORE_FRAGMENTS_IPV4 | FRAGMENT_OFFSET_IPV4))
			return REASON_DNS;
	}
	if (is_multicast(&p->dst) || is_unspecified(&p->dst) || is_loopback(&p->dst) ||
	    in_dns_range(&p->dst))
		return REASON_DNS;
	if (rewrites_itself(skb, p))
		return REASON_MALFORMED;
	if (!headerless && bpf_skb_load_bytes(skb, 0, macs, sizeof(macs)))
		return REASON_TRUNCATED;
	if (dns_flow_note(identity, p, macs, &key))
		return REASON_DNS;
	dns_client(&client, ipv4, &key);
	/* a bridge's port sees frames that are not for this host */
	if (dns_readdress(skb, network, p, 0, &client) || bpf_skb_change_type(skb, PACKET_HOST))
		return REASON_DNS;
	if (!ingress && dns_frame(skb, headerless, ipv4))
		return REASON_DNS;
	return REASON_NONE;
}

/*
 * dns_lead_back makes the listener's answer that of the server that was asked,
 * and returns the interface that it belongs out of, or, with BPF_F_INGRESS in
 * *flags, into; or 0: everything else that comes out of the namespace ends here.
 */
static __always_inline __u32 dns_lead_back(struct __sk_buff *skb, __u64 netns, __u64 *flags)
{
	struct dns_flow_key key = {};
	struct attachment *attachment;
	struct packet p = {};
	struct dns_flow *found, flow;
	__u8 macs[MACS];
	__u32 low;

	if (parse_frame(skb, &p) || p.arp || p.portless || p.src_port != PORT_DNS ||
	    !is_dns_client(&p.dst))
		return 0;
	low = bpf_ntohl(p.dst.word[3]);
	key.attachment = low & DNS_INDEX_MASK;
	key.way = low >> DNS_INDEX_BITS & (DNS_WAYS - 1);
	key.set = dns_set(&p.src, p.dst_port, p.protocol);
	attachment = bpf_map_lookup_elem(&nf_attachments, &key.attachment);
	found = bpf_map_lookup_elem(&nf_dns_flows, &key);
	if (!attachment || !found)
		return 0;
	flow = *found; /* another flow may get its memory while we look */
	if (flow.incarnation != attachment->incarnation || flow.deadline <= boot_clock() ||
	    flow.protocol != p.protocol || flow.client_port != p.dst_port ||
	    !same_address(&flow.server, &p.src))
		return 0;
	if (attachment->scope != netns || !(attachment->flags & ATTACHMENT_INTERFACE))
		return 0;
	*flags = attachment->flags & ATTACHMENT_EGRESS ? BPF_F_INGRESS : 0;
	__builtin_memcpy(macs, flow.macs + 6, 6);
	__builtin_memcpy(macs + 6, flow.macs, 6);
	if (dns_readdress(skb, ETH_HLEN, &p, 1, &flow.client))
		return 0;
	/* a device without a link-layer header has it cut off */
	if (bpf_skb_store_bytes(skb, 0, macs, sizeof(macs), 0))
		return 0;
	return attachment->ifindex;
}

static long dns_flow_visit(struct bpf_map *map, const struct dns_flow_key *key,
			   struct dns_flow *flow, __u64 *now)
{
	struct dns_flow_key copy = *key;

	if (flow->deadline <= *now)
		bpf_map_delete_elem(&nf_dns_flows, &copy);
	return 0;
}

#endif
