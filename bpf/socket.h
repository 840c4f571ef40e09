/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Sockets of cgroups, before there is a packet. */
#ifndef NETFENCE_SOCKET_H
#define NETFENCE_SOCKET_H

#include "dns_cgroup.h"

#define SK_PASS_PACKET 1
#define SK_DROP_PACKET 0

static __always_inline enum reason socket_verdict(struct learning *learning, struct packet *p)
{
	if (!asks_rules(learning->word))
		return WORD_SLOT(learning->word) ? guarded(learning, p) : silence(learning->word);
	if (p->portless || is_loopback(&p->dst) || is_unspecified(&p->dst))
		return REASON_NONE;
	return judge_apart(learning, p);
}

/*
 * Another namespace has a lo of its own. An address that is not a loopback one, and
 * that the daemon listens on, is the host's wherever the workload is.
 */
static __always_inline int connects_to_protected(struct bpf_sock_addr *ctx, const struct packet *p)
{
	struct protected_socket *protected = protected_socket(p);

	if (!protected)
		return 0;
	if (is_loopback(&p->dst) || is_unspecified(&p->dst))
		return protected->netns == bpf_get_netns_cookie(ctx);
	return same_address(&protected->address, &p->dst);
}

/*
 * early_verdict refuses at connect and sendmsg what the packets would be
 * refused for. Only TCP and UDP: other protocols have no ports here, and their
 * packets are judged anyway. Nothing is known yet of the device, so whatever
 * may leave through lo waits for its packets; and nothing of the source, so what
 * may be a datagram on a flow does too. It is refused with EPERM all the same.
 * Queries get another address, which the caller writes back. Where the cgroup is
 * nobody's this is no verdict: the program may have outlived its attachment, and
 * as long as there is one its packets are dropped.
 */
static __always_inline int early_verdict(struct bpf_sock_addr *ctx, struct address *to,
					 int datagram, int *rewritten)
{
	__u64 identity = *(volatile __u64 *)bpf_get_local_storage(&nf_cgroups, 0);
	__u64 word = word_in_force(IDENTITY_ATTACHMENT(identity));
	struct packet p = {
		.dst = *to,
		.dst_port = bpf_ntohs(ctx->user_port),
		.protocol = ctx->protocol,
	};
	struct learning learning = learning_of(identity, word);
	enum reason reason = REASON_NONE;
	enum dns_step dns;

	*rewritten = 0;
	if (!identity)
		return SK_PASS_PACKET;
	dns = dns_ask(ctx, identity, word, to);
	*rewritten = dns == DNS_REWRITTEN;
	p.portless = p.protocol != IPPROTO_TCP && p.protocol != IPPROTO_UDP;
	if (dns == DNS_REFUSED)
		reason = in_dns_range(to) ? REASON_PROTECTED : REASON_DNS;
	else if (connects_to_protected(ctx, &p))
		reason = REASON_PROTECTED;
	else if (dns == DNS_NOT_OURS)
		reason = socket_verdict(&learning, &p);
	if (reason == REASON_NO_RULE && datagram && word & WORD_DNS &&
	    has_flows(IDENTITY_ATTACHMENT(identity)))
		return SK_PASS_PACKET;
	if (!reason || is_audited(word, reason))
		return SK_PASS_PACKET; /* not counted: its packets will be */
	settle(identity, word, reason, 0, &p);
	return SK_DROP_PACKET;
}

static __always_inline void get_address4(struct bpf_sock_addr *ctx, struct address *a)
{
	set_ipv4(a, ctx->user_ip4);
}

static __always_inline void get_address6(struct bpf_sock_addr *ctx, struct address *a)
{
	a->word[0] = ctx->user_ip6[0];
	a->word[1] = ctx->user_ip6[1];
	a->word[2] = ctx->user_ip6[2];
	a->word[3] = ctx->user_ip6[3];
}

static __always_inline void put_address6(struct bpf_sock_addr *ctx, const struct address *a)
{
	ctx->user_ip6[0] = a->word[0];
	ctx->user_ip6[1] = a->word[1];
	ctx->user_ip6[2] = a->word[2];
	ctx->user_ip6[3] = a->word[3];
}

static __always_inline int early_verdict4(struct bpf_sock_addr *ctx, int datagram)
{
	int rewritten, verdict;
	struct address to;

	get_address4(ctx, &to);
	verdict = early_verdict(ctx, &to, datagram, &rewritten);
	if (rewritten)
		ctx->user_ip4 = to.word[3];
	return verdict;
}

static __always_inline int early_verdict6(struct bpf_sock_addr *ctx, int datagram)
{
	int rewritten, verdict;
	struct address to;

	get_address6(ctx, &to);
	verdict = early_verdict(ctx, &to, datagram, &rewritten);
	if (rewritten)
		put_address6(ctx, &to);
	return verdict;
}

static __always_inline int answered4(struct bpf_sock_addr *ctx)
{
	struct address from;

	get_address4(ctx, &from);
	if (dns_answered(ctx, &from))
		ctx->user_ip4 = from.word[3];
	return SK_PASS_PACKET;
}

static __always_inline int answered6(struct bpf_sock_addr *ctx)
{
	struct address from;

	get_address6(ctx, &from);
	if (dns_answered(ctx, &from))
		put_address6(ctx, &from);
	return SK_PASS_PACKET;
}

#endif
