/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* From bytes to struct packet. Whatever cannot be read to the end is a drop. */
#ifndef NETFENCE_PARSE_H
#define NETFENCE_PARSE_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "types.h"

#define MAX_EXTENSION_HEADERS 8
#define FRAGMENT_OFFSET_IPV4 0x1fff
#define MORE_FRAGMENTS_IPV4 0x2000
#define FRAGMENT_OFFSET_IPV6 0xfff8
#define IPV4_OPTIONS 40 /* bytes, at most */
#define OPTION_END 0
#define OPTION_NOP 1
#define OPTION_LSRR 131 /* RFC 791 */
#define OPTION_SSRR 137
#define PROTOCOL_MOBILITY 135 /* RFC 6275 */
#define PROTOCOL_HIP 139 /* RFC 7401 */
#define PROTOCOL_SHIM6 140 /* RFC 5533 */
#define TCP_FLAGS_OFFSET 13
#define TCP_FLAG_SYN_BYTE 0x02
#define TCP_FLAG_RST_BYTE 0x04
#define TCP_FLAG_ACK_BYTE 0x10

/* What the verdict needs of a packet, the same for both families. */
struct packet {
	struct address src;
	struct address dst;
	__u32 length; /* bytes from the network header on: those there are, whatever it claims */
	__u16 src_port; /* host order; ICMP echo: the identifier */
	__u16 dst_port;
	__u8 protocol;
	__u8 hop_limit;
	__u8 portless; /* no ports: another protocol, or not the first fragment */
	__u8 fragment; /* not the first */
	__u8 extended; /* IPv6 extension headers other than hop-by-hop */
	__u8 tcp_flags;
	__u8 icmp_type;
	__u8 arp;
	__u16 transport; /* offset of what follows the network header */
	__u8 ports_only; /* a rule that allows every port does not mean this one */
	__u8 ruled; /* enum reason: what by_rules said of it */
	__u8 timed; /* which may change by itself */
	__u8 unruled; /* remembered: no rule speaks of it */
	__u8 unopened; /* remembered: nor has a name opened it, up to now */
	__u8 pad;
	__u32 rule; /* that denies it, by struct clause; 0: none */
};

static __always_inline void set_ipv4(struct address *a, __be32 ipv4)
{
	a->word[0] = 0;
	a->word[1] = 0;
	a->word[2] = bpf_htonl(0xffff);
	a->word[3] = ipv4;
}

/*
 * header returns size bytes at offset: in place when the linear part holds them,
 * else through copy, which costs a helper call but never reallocates the packet.
 */
static __always_inline const void *header(struct __sk_buff *skb, __u32 offset, __u32 size,
					  void *copy)
{
	const void *at = (void *)(long)skb->data;
	const void *end = (void *)(long)skb->data_end;
	__u64 bounded = offset;

	asm volatile("" : "+r"(bounded)); /* check the very register that is used */
	if (bounded > 4096) /* the verifier wants a bound; real headers end long before */
		return NULL;
	at += bounded;
	if (at + size <= end)
		return at;
	return bpf_skb_load_bytes(skb, offset, copy, size) ? NULL : copy;
}

static __always_inline enum reason parse_transport(struct __sk_buff *skb, __u32 offset,
						   struct packet *p)
{
	p->transport = offset;
	if (p->fragment) {
		p->portless = 1;
		return REASON_NONE;
	}
	if (p->protocol == IPPROTO_TCP) {
		__u8 copy[14];
		const __u8 *tcp = header(skb, offset, sizeof(copy), copy);

		if (!tcp)
			return REASON_TRUNCATED;
		p->src_port = tcp[0] << 8 | tcp[1];
		p->dst_port = tcp[2] << 8 | tcp[3];
		p->tcp_flags = tcp[TCP_FLAGS_OFFSET];
		return REASON_NONE;
	}
	if (p->protocol == IPPROTO_UDP) {
		__u8 copy[8];
		const __u8 *udp = header(skb, offset, sizeof(copy), copy);

		if (!udp)
			return REASON_TRUNCATED;
		p->src_port = udp[0] << 8 | udp[1];
		p->dst_port = udp[2] << 8 | udp[3];
		return REASON_NONE;
	}
	p->portless = 1;
	if (p->protocol == IPPROTO_ICMP || p->protocol == IPPROTO_ICMPV6) {
		__u8 copy[8];
		const __u8 *icmp = header(skb, offset, sizeof(copy), copy);

		if (!icmp)
			return REASON_TRUNCATED;
		p->icmp_type = icmp[0];
		p->src_port = icmp[4] << 8 | icmp[5];
	}
	return REASON_NONE;
}

struct options {
	__u8 byte[IPV4_OPTIONS + 1];
	__u8 reason;
	__u16 at;
	__u32 size;
};

static long parse_option(__u32 i, struct options *o)
{
	__u32 at = o->at;
	__u8 type, length;

	if (at >= o->size || at >= IPV4_OPTIONS)
		return 1;
	type = o->byte[at];
	length = o->byte[at + 1];
	if (type == OPTION_END)
		return 1;
	if (type == OPTION_NOP) {
		o->at++;
		return 0;
	}
	if (type == OPTION_LSRR || type == OPTION_SSRR)
		o->reason = REASON_SOURCE_ROUTE;
	else if (length < 2)
		o->reason = REASON_MALFORMED;
	o->at += length;
	return o->reason ? 1 : 0;
}

/* Source routes (RFC 791) send the packet elsewhere than its destination says. */
static __always_inline enum reason parse_options(struct __sk_buff *skb, __u32 offset, __u32 size)
{
	struct options options = { .size = size };

	if (size < 4 || size > IPV4_OPTIONS)
		return REASON_MALFORMED;
	if (bpf_skb_load_bytes(skb, offset, options.byte, size))
		return REASON_TRUNCATED;
	bpf_loop(IPV4_OPTIONS, parse_option, &options, 0);
	return options.reason;
}

/* Global functions: the verifier checks each once for a program, not for each path to it. */
__attribute__((noinline)) int parse_ipv4(struct __sk_buff *skb, __u32 offset, struct packet *p)
{
	struct iphdr copy;
	const struct iphdr *ip;
	__u32 size;

	if (!skb || !p)
		return REASON_TRUNCATED;
	ip = header(skb, offset, sizeof(copy), &copy);
	if (!ip)
		return REASON_TRUNCATED;
	size = ip->ihl * 4;
	if (ip->version != 4 || size < sizeof(copy))
		return REASON_MALFORMED;
	set_ipv4(&p->src, ip->saddr);
	set_ipv4(&p->dst, ip->daddr);
	p->protocol = ip->protocol;
	p->hop_limit = ip->ttl;
	p->length = skb->len - offset;
	p->fragment = !!(ip->frag_off & bpf_htons(FRAGMENT_OFFSET_IPV4));
	if (size > sizeof(copy)) {
		enum reason reason = parse_options(skb, offset + sizeof(copy), size - sizeof(copy));

		if (reason)
			return reason;
	}
	return parse_transport(skb, offset + size, p);
}

static __always_inline int is_extension(__u8 protocol)
{
	switch (protocol) {
	case IPPROTO_HOPOPTS:
	case IPPROTO_ROUTING:
	case IPPROTO_FRAGMENT:
	case IPPROTO_DSTOPTS:
	case IPPROTO_AH:
	case PROTOCOL_MOBILITY:
	case PROTOCOL_HIP:
	case PROTOCOL_SHIM6:
		return 1;
	}
	return 0;
}

struct extensions {
	struct __sk_buff *skb;
	__u32 offset;
	__u8 protocol;
	__u8 reason;
	__u8 extended;
	__u8 fragment;
};

static long parse_extension(__u32 i, struct extensions *walk)
{
	__u8 header[4];

	if (!is_extension(walk->protocol))
		return 1;
	if (walk->offset > 4096 ||
	    bpf_skb_load_bytes(walk->skb, walk->offset, header, sizeof(header))) {
		walk->reason = REASON_TRUNCATED;
		return 1;
	}
	if (walk->protocol != IPPROTO_HOPOPTS)
		walk->extended = 1;
	if (walk->protocol == IPPROTO_ROUTING && header[3]) {
		walk->reason = REASON_ROUTING_HEADER;
		return 1;
	}
	if (walk->protocol == IPPROTO_FRAGMENT) {
		walk->fragment = !!((header[2] << 8 | header[3]) & FRAGMENT_OFFSET_IPV6);
		walk->offset += 8;
	} else if (walk->protocol == IPPROTO_AH) {
		walk->offset += (header[1] + 2) * 4;
	} else {
		walk->offset += (header[1] + 1) * 8;
	}
	walk->protocol = header[0];
	return walk->fragment ? 1 : 0;
}

__attribute__((noinline)) int parse_ipv6(struct __sk_buff *skb, __u32 offset, struct packet *p)
{
	struct ipv6hdr copy;
	const struct ipv6hdr *ip;
	struct extensions walk = {};

	if (!skb || !p)
		return REASON_TRUNCATED;
	ip = header(skb, offset, sizeof(copy), &copy);
	if (!ip)
		return REASON_TRUNCATED;
	if (ip->version != 6)
		return REASON_MALFORMED;
	__builtin_memcpy(&p->src, &ip->saddr, sizeof(p->src));
	__builtin_memcpy(&p->dst, &ip->daddr, sizeof(p->dst));
	p->protocol = ip->nexthdr;
	p->hop_limit = ip->hop_limit;
	p->length = skb->len - offset;
	offset += sizeof(copy);

	if (!is_extension(p->protocol))
		return parse_transport(skb, offset, p);
	walk.skb = skb;
	walk.offset = offset;
	walk.protocol = p->protocol;
	bpf_loop(MAX_EXTENSION_HEADERS, parse_extension, &walk, 0);
	p->protocol = walk.protocol;
	p->extended = walk.extended;
	p->fragment = walk.fragment;
	if (walk.reason)
		return walk.reason;
	if (is_extension(walk.protocol) && !walk.fragment)
		return REASON_EXTENSION_HEADERS;
	return parse_transport(skb, walk.offset, p);
}

static __always_inline enum reason parse_network(struct __sk_buff *skb, __be16 protocol,
						 __u32 offset, struct packet *p)
{
	if (protocol == bpf_htons(ETH_P_IP))
		return parse_ipv4(skb, offset, p);
	if (protocol == bpf_htons(ETH_P_IPV6))
		return parse_ipv6(skb, offset, p);
	return REASON_NOT_IP;
}

/*
 * parse_ordinary is the short way for what nearly all packets are: TCP or UDP, with
 * no tag, option, extension header or fragment, and in one piece as far as the
 * verdict looks. It makes of such a packet what parse_network does, and leaves
 * all others, returning 0.
 */
static __always_inline int parse_ordinary(struct __sk_buff *skb, __be16 protocol, __u32 offset,
					  struct packet *p)
{
	const void *network = (void *)(long)skb->data + offset;
	const void *end = (void *)(long)skb->data_end;
	const __u8 *transport;

	if (protocol == bpf_htons(ETH_P_IP)) {
		const struct iphdr *ip = network;

		transport = (void *)(ip + 1);
		if ((void *)(transport + 8) > end || *(const __u8 *)network != 0x45 ||
		    ip->frag_off & bpf_htons(MORE_FRAGMENTS_IPV4 | FRAGMENT_OFFSET_IPV4))
			return 0;
		set_ipv4(&p->src, ip->saddr);
		set_ipv4(&p->dst, ip->daddr);
		p->protocol = ip->protocol;
		p->hop_limit = ip->ttl;
		p->transport = offset + sizeof(*ip);
	} else if (protocol == bpf_htons(ETH_P_IPV6)) {
		const struct ipv6hdr *ip = network;

		transport = (void *)(ip + 1);
		if ((void *)(transport + 8) > end || *(const __u8 *)network >> 4 != 6)
			return 0;
		__builtin_memcpy(&p->src, &ip->saddr, sizeof(p->src));
		__builtin_memcpy(&p->dst, &ip->daddr, sizeof(p->dst));
		p->protocol = ip->nexthdr;
		p->hop_limit = ip->hop_limit;
		p->transport = offset + sizeof(*ip);
	} else {
		return 0;
	}
	p->length = skb->len - offset;
	if (p->protocol == IPPROTO_TCP) {
		if ((void *)(transport + TCP_FLAGS_OFFSET + 1) > end)
			return 0;
		p->tcp_flags = transport[TCP_FLAGS_OFFSET];
	} else if (p->protocol != IPPROTO_UDP) {
		return 0;
	}
	p->src_port = bpf_ntohs(*(const __be16 *)transport);
	p->dst_port = bpf_ntohs(*(const __be16 *)(transport + 2));
	return 1;
}

/* parse_ip is parse_network, by the short way where it leads. */
static __always_inline enum reason parse_ip(struct __sk_buff *skb, __be16 protocol, __u32 offset,
					    struct packet *p)
{
	if (parse_ordinary(skb, protocol, offset, p))
		return REASON_NONE;
	__builtin_memset(p, 0, sizeof(*p)); /* of what turned out to be none */
	return parse_network(skb, protocol, offset, p);
}

/*
 * parse_frame reads the frame's own ethertype, not skb->protocol: the frame is
 * what leaves. The kernel may have taken the outermost tag out of the frame.
 */
static __always_inline enum reason parse_frame(struct __sk_buff *skb, struct packet *p)
{
	__u32 offset = ETH_HLEN, tags = skb->vlan_present ? 1 : 0;
	__be16 copy;
	const __be16 *type = header(skb, ETH_HLEN - sizeof(copy), sizeof(copy), &copy);
	__be16 protocol;

	if (!type)
		return REASON_TRUNCATED;
	protocol = *type;
	for (int i = 0; i < 2; i++) {
		if (protocol != bpf_htons(ETH_P_8021Q) && protocol != bpf_htons(ETH_P_8021AD))
			break;
		if (++tags > 2)
			return REASON_VLAN_DEPTH;
		type = header(skb, offset + 2, sizeof(copy), &copy);
		if (!type)
			return REASON_TRUNCATED;
		protocol = *type;
		offset += 4;
	}
	if (protocol == bpf_htons(ETH_P_8021Q) || protocol == bpf_htons(ETH_P_8021AD))
		return REASON_VLAN_DEPTH;
	if (protocol == bpf_htons(ETH_P_ARP)) {
		p->arp = 1;
		p->transport = offset;
		return REASON_NONE;
	}
	return parse_network(skb, protocol, offset, p);
}

#endif
