/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Whose packet it is begins with where its device is. bpf_get_netns_cookie at tc
 * does not tell: it answers for the packet's socket, and for a packet without one,
 * such as any that a veth or a tap brings in, with the initial namespace. So this
 * reads what the kernel itself has of the device. CO-RE finds the fields.
 */
#ifndef NETFENCE_NETNS_H
#define NETFENCE_NETNS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

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
};
#pragma clang attribute pop

/* Linux 6.2 */
extern void *bpf_cast_to_kern_ctx(void *context) __ksym;

static __always_inline __u64 netns_cookie(struct __sk_buff *context)
{
	struct sk_buff *skb = bpf_cast_to_kern_ctx(context);

	return skb->dev->nd_net.net->net_cookie;
}

#endif
