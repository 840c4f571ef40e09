/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the kernel knows of a packet and struct __sk_buff does not tell. CO-RE
 * finds the fields.
 */
#ifndef NETFENCE_KERNEL_H
#define NETFENCE_KERNEL_H

#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#include "parse.h"

#define CHECKSUM_PARTIAL 3 /* include/linux/skbuff.h: the device, or the kernel, is to write it */

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct net {
	__u64 net_cookie;
};
struct net_device {
	struct {
		struct net *net;
	} nd_net;
};
struct sk_buff {
	struct net_device *dev;
	unsigned char *head;
	unsigned char *data;
	__u16 csum_start; /* from head */
	__u16 csum_offset; /* from there */
	__u8 ip_summed : 2;
	unsigned long _skb_refdst; /* struct dst_entry *, and a flag in the lowest bit */
};
struct rtable { /* begins with a struct dst_entry */
	__u16 rt_type;
};
#pragma clang attribute pop

/*
 * Linux 6.2. Where they are missing, the loader lets their addresses be 0, and the
 * verifier removes what they would have been called by; where they are, it removes
 * the slower way. A context at tc and at a cgroup is the struct sk_buff itself.
 */
extern void *bpf_cast_to_kern_ctx(void *context) __ksym __weak;
extern void *bpf_rdonly_cast(const void *object, __u32 type) __ksym __weak;

/* The loader's network namespace, for kernels that cannot tell a device's. */
const volatile __u64 own_netns = 0;

/*
 * Whose packet it is begins with where its device is. bpf_get_netns_cookie at tc
 * does not tell: it answers for the packet's socket, and for a packet without one,
 * such as any that a veth or a tap brings in, with the initial namespace. Before
 * Linux 6.2 there is no tcx either, and a device that moves to another namespace
 * leaves its qdiscs behind, and their programs: none runs elsewhere than where it
 * was attached.
 */
static __always_inline __u64 netns_cookie(struct __sk_buff *context)
{
	struct sk_buff *skb;

	if (!bpf_cast_to_kern_ctx)
		return own_netns;
	skb = bpf_cast_to_kern_ctx(context);
	return skb->dev->nd_net.net->net_cookie;
}

/* judged_bytes is how much of the transport header the verdict stands on. */
static __always_inline int judged_bytes(const struct packet *p)
{
	if (p->fragment)
		return 0;
	switch (p->protocol) {
	case IPPROTO_TCP:
		return TCP_FLAGS_OFFSET + 1;
	case IPPROTO_UDP:
		return 4; /* ports */
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		return 6; /* type to identifier; nobody leaves this checksum to the device */
	}
	return 0;
}

/*
 * rewrites_itself is true for a packet that will be another one when it leaves.
 * A sender may leave the checksum to be written later and says where: a virtual
 * machine in the virtio header of each frame, a container in that of a packet
 * socket. Nothing obliges it to name the place of a checksum. In a port, or in an
 * IPv6 address, which no header checksum protects, the sum of a chosen payload
 * addresses the packet anew after the verdict.
 */
static __always_inline int rewrites_itself(struct __sk_buff *context, const struct packet *p)
{
	struct sk_buff *skb;
	int at;

	if (bpf_cast_to_kern_ctx) {
		skb = bpf_cast_to_kern_ctx(context);
		if (BPF_CORE_READ_BITFIELD(skb, ip_summed) != CHECKSUM_PARTIAL)
			return 0;
		at = (int)(skb->head - skb->data) + skb->csum_start + skb->csum_offset;
	} else {
		skb = (void *)context;
		if (BPF_CORE_READ_BITFIELD_PROBED(skb, ip_summed) != CHECKSUM_PARTIAL)
			return 0;
		at = (int)(BPF_CORE_READ(skb, head) - BPF_CORE_READ(skb, data)) +
		     BPF_CORE_READ(skb, csum_start) + BPF_CORE_READ(skb, csum_offset);
	}
	return at < p->transport + judged_bytes(p);
}

/* ipv4_route_type is RTN_*, of an IPv4 packet that has been routed. */
static __always_inline __u16 ipv4_route_type(struct __sk_buff *context)
{
	struct sk_buff *skb;
	struct rtable *route;

	if (!bpf_cast_to_kern_ctx || !bpf_rdonly_cast) {
		skb = (void *)context;
		route = (void *)(BPF_CORE_READ(skb, _skb_refdst) & ~1UL);
		return BPF_CORE_READ(route, rt_type);
	}
	skb = bpf_cast_to_kern_ctx(context);
	route = bpf_rdonly_cast((void *)(skb->_skb_refdst & ~1UL),
				bpf_core_type_id_kernel(struct rtable));
	return route->rt_type;
}

#endif
