/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A cgroup shares lo with the whole host. Loopback means leaving through lo,
 * whatever the address: the host's own addresses are reached through it too.
 */
#ifndef NETFENCE_LOOPBACK_H
#define NETFENCE_LOOPBACK_H

#include <linux/rtnetlink.h>

#include "flow.h"
#include "kernel.h"

#define LOOPBACK_IFINDEX 1 /* the same in every namespace */

/*
 * protected_socket is the socket of the daemon that p would reach, or NULL, as far
 * as the address tells; whether this is its namespace is for the caller to ask.
 */
static __always_inline struct protected_socket *protected_socket(const struct packet *p)
{
	struct protected_socket *socket;
	__u32 key = 0;

	if (p->protocol != IPPROTO_TCP || p->portless)
		return NULL;
	socket = bpf_map_lookup_elem(&nf_protected, &key);
	if (!socket || p->dst_port != socket->port)
		return NULL;
	if (!is_unspecified(&socket->address) && !same_address(&socket->address, &p->dst))
		return NULL;
	return socket;
}

/*
 * receiver is the socket of a network namespace that would get p if it came from
 * src_port, or NULL. The caller releases it.
 */
static __always_inline struct bpf_sock *receiver(struct __sk_buff *skb, const struct packet *p,
						 __u16 src_port, __s32 netns)
{
	struct bpf_sock_tuple tuple = {};
	__u32 size;

	if (is_ipv4(&p->dst)) {
		tuple.ipv4.saddr = p->src.word[3];
		tuple.ipv4.daddr = p->dst.word[3];
		tuple.ipv4.sport = bpf_htons(src_port);
		tuple.ipv4.dport = bpf_htons(p->dst_port);
		size = sizeof(tuple.ipv4);
	} else {
		__builtin_memcpy(tuple.ipv6.saddr, &p->src, sizeof(p->src));
		__builtin_memcpy(tuple.ipv6.daddr, &p->dst, sizeof(p->dst));
		tuple.ipv6.sport = bpf_htons(src_port);
		tuple.ipv6.dport = bpf_htons(p->dst_port);
		size = sizeof(tuple.ipv6);
	}
	if (p->protocol == IPPROTO_TCP)
		return bpf_sk_lookup_tcp(skb, &tuple, size, netns, 0);
	return bpf_sk_lookup_udp(skb, &tuple, size, netns, 0);
}

/*
 * reaches_own is true when the socket that would receive p belongs to the
 * workload's cgroup or one below it. A TCP packet to a loopback address that
 * nobody would receive passes too, so that the kernel can refuse the connection:
 * should a host service begin to listen that instant, the next packet finds its
 * socket. Other addresses may be a transparent proxy's, which no lookup shows.
 */
static __always_inline int reaches_own(struct __sk_buff *skb, __u32 attachment,
				       const struct packet *p)
{
	struct attachment *self = bpf_map_lookup_elem(&nf_attachments, &attachment);
	struct bpf_sock *sk;
	int own;

	if (!self || p->portless || is_multicast(&p->dst))
		return 0;
	sk = receiver(skb, p, p->src_port, BPF_F_CURRENT_NETNS);
	if (!sk && p->protocol == IPPROTO_TCP) /* one in TIME_WAIT gives a SYN to the listener */
		sk = receiver(skb, p, 0, BPF_F_CURRENT_NETNS);
	if (!sk)
		return p->protocol == IPPROTO_TCP && is_loopback(&p->dst);
	own = bpf_sk_ancestor_cgroup_id(sk, self->level) == self->scope;
	bpf_sk_release(sk);
	return own;
}

__attribute__((noinline)) int loopback_verdict(struct __sk_buff *skb, __u64 identity, __u64 word,
					       struct packet *p)
{
	struct learning learning = learning_of(identity, word);
	int local = 1, everybody = 0;
	enum reason reason;

	if (!p)
		return REASON_LOOPBACK;
	if (!asks_rules(word))
		return guarded(&learning, p);
	if (word & WORD_LOOPBACK_DENY)
		return REASON_LOOPBACK;
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		__u16 type = ipv4_route_type(skb);

		everybody = type == RTN_BROADCAST || type == RTN_MULTICAST;
		local = type == RTN_LOCAL || everybody;
	}
	/*
	 * A socket bound to lo sends even a remote address through it, and the host
	 * receives that as its own: a rule for the address does not mean the host.
	 */
	if (!local)
		return REASON_LOOPBACK;
	p->ports_only = bypasses_names(word, p);
	reason = by_rules(WORD_SLOT(word), p, &p->dst);
	if (reason != REASON_NO_RULE)
		return reason;
	if (word & WORD_LOOPBACK_ALLOW && !p->ports_only)
		return REASON_NONE;
	if (!everybody && reaches_own(skb, IDENTITY_ATTACHMENT(identity), p))
		return REASON_NONE;
	if (word & WORD_REPLIES && flow_permits(identity, p, 1))
		return REASON_NONE;
	return p->ports_only ? REASON_NAME_PROTOCOL : REASON_LOOPBACK;
}

#endif
