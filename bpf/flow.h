/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Reply flows: what somebody outside has opened may be answered. A flow begins
 * only with an inbound SYN or echo request, is asked for only after the rules
 * were silent, and never lets a connection be opened from inside.
 */
#ifndef NETFENCE_FLOW_H
#define NETFENCE_FLOW_H

#include "verdict.h"

#define SECOND 1000000000ULL
#define FLOW_OPENING (60 * SECOND) /* until the peer has answered, and for echo */
#define FLOW_IDLE_TCP (600 * SECOND) /* since the last inbound packet */
#define PORT_DNS 53

#define ICMP_ECHO_REPLY_V4 0
#define ICMP_ECHO_REQUEST_V4 8
#define ICMPV6_ECHO_REQUEST_TYPE 128
#define ICMPV6_ECHO_REPLY_TYPE 129

/* Set by the daemon at load: limits.flows. */
const volatile __u64 max_flows_per_attachment = 4096;

static __always_inline int is_echo(const struct packet *p, int reply)
{
	if (p->fragment)
		return 0;
	if (p->protocol == IPPROTO_ICMP && is_ipv4(&p->dst))
		return p->icmp_type == (reply ? ICMP_ECHO_REPLY_V4 : ICMP_ECHO_REQUEST_V4);
	if (p->protocol == IPPROTO_ICMPV6 && !is_ipv4(&p->dst))
		return p->icmp_type == (reply ? ICMPV6_ECHO_REPLY_TYPE : ICMPV6_ECHO_REQUEST_TYPE);
	return 0;
}

static __always_inline int is_bare_syn(const struct packet *p)
{
	return (p->tcp_flags & (TCP_FLAG_SYN_BYTE | TCP_FLAG_ACK_BYTE)) == TCP_FLAG_SYN_BYTE;
}

static __always_inline void inbound_key(struct flow_key *key, const struct packet *p,
					__u32 incarnation, int loopback)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->local = p->dst;
	key->remote = p->src;
	key->incarnation = incarnation;
	key->protocol = p->protocol;
	key->loopback = loopback;
	if (p->protocol == IPPROTO_TCP) {
		key->local_port = p->dst_port;
		key->remote_port = p->src_port;
	} else {
		key->local_port = p->src_port; /* the echo identifier */
	}
}

static __always_inline void outbound_key(struct flow_key *key, const struct packet *p,
					 __u32 incarnation, int loopback)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->local = p->src;
	key->remote = p->dst;
	key->incarnation = incarnation;
	key->protocol = p->protocol;
	key->loopback = loopback;
	key->local_port = p->src_port;
	if (p->protocol == IPPROTO_TCP)
		key->remote_port = p->dst_port;
}

static __always_inline void flow_end(const struct flow_key *key, __u32 attachment)
{
	__u64 *flows = bpf_map_lookup_elem(&nf_flow_counts, &attachment);

	if (!bpf_map_delete_elem(&nf_flows, key) && flows)
		__sync_fetch_and_add(flows, -1);
}

static __always_inline void flow_begin(const struct flow_key *key, __u32 attachment, __u64 *flows,
				       __u64 deadline)
{
	struct flow *known = bpf_map_lookup_elem(&nf_flows, key);
	struct flow flow = { .deadline = deadline, .attachment = attachment };

	if (known) {
		if (known->deadline < deadline)
			known->deadline = deadline;
		return;
	}
	if (*flows >= max_flows_per_attachment)
		return;
	__sync_fetch_and_add(flows, 1);
	if (bpf_map_update_elem(&nf_flows, key, &flow, BPF_NOEXIST))
		__sync_fetch_and_add(flows, -1);
}

/*
 * flow_inbound notes what comes from outside. It never drops. A SYN that claims
 * to come from loopback, port 53 or a group begins nothing.
 */
static __always_inline void flow_inbound(__u64 identity, const struct packet *p, int loopback)
{
	__u32 attachment = IDENTITY_ATTACHMENT(identity);
	__u64 *flows = bpf_map_lookup_elem(&nf_flow_counts, &attachment);
	struct flow_key key;
	struct flow *flow;
	__u64 now;

	if (!flows || p->fragment)
		return;
	if (p->protocol == IPPROTO_TCP) {
		if (!is_bare_syn(p) && !*flows)
			return;
	} else if (!is_echo(p, 0)) {
		return;
	}
	if (is_multicast(&p->dst) || is_multicast(&p->src) || is_unspecified(&p->src))
		return;
	if (!loopback && (is_loopback(&p->src) || is_loopback(&p->dst)))
		return;
	if (p->protocol == IPPROTO_TCP && p->src_port == PORT_DNS)
		return;

	inbound_key(&key, p, IDENTITY_INCARNATION(identity), loopback);
	now = bpf_ktime_get_boot_ns();
	if (p->protocol != IPPROTO_TCP || is_bare_syn(p)) {
		flow_begin(&key, attachment, flows, now + FLOW_OPENING);
		return;
	}
	if (p->tcp_flags & TCP_FLAG_RST_BYTE) {
		flow_end(&key, attachment);
		return;
	}
	flow = bpf_map_lookup_elem(&nf_flows, &key);
	if (flow && flow->deadline > now)
		flow->deadline = now + FLOW_IDLE_TCP;
}

/* flow_permits is asked when no rule speaks of an outbound packet. */
static __always_inline int flow_permits(__u64 identity, const struct packet *p, int loopback)
{
	__u32 attachment = IDENTITY_ATTACHMENT(identity);
	__u64 *flows = bpf_map_lookup_elem(&nf_flow_counts, &attachment);
	struct flow_key key;
	struct flow *flow;

	if (!flows || !*flows || p->fragment)
		return 0;
	if (p->protocol == IPPROTO_TCP) {
		if (is_bare_syn(p))
			return 0;
	} else if (!is_echo(p, 1)) {
		return 0;
	}
	outbound_key(&key, p, IDENTITY_INCARNATION(identity), loopback);
	flow = bpf_map_lookup_elem(&nf_flows, &key);
	if (!flow || flow->deadline <= bpf_ktime_get_boot_ns())
		return 0;
	if (p->protocol == IPPROTO_TCP && p->tcp_flags & TCP_FLAG_RST_BYTE)
		flow_end(&key, attachment);
	return 1;
}

/* flows_serve: silence of the rules is a denial, and replies are excepted. */
static __always_inline int flows_serve(__u64 word, int loopback)
{
	if (!(word & WORD_REPLIES))
		return 0;
	/* on lo, the default of denylist is closed too */
	return WORD_MODE(word) == MODE_ALLOWLIST || (loopback && WORD_MODE(word) == MODE_DENYLIST);
}

/* flow_outlived: its time is over, or the policy in force denies the peer. */
static __always_inline int flow_outlived(const struct flow_key *key, const struct flow *flow,
					 __u64 now)
{
	struct packet p = {};
	__u64 word;

	if (flow->deadline <= now)
		return 1;
	word = policy_word(flow->attachment);
	if (!flows_serve(word, key->loopback))
		return 1;
	p.dst = key->remote;
	p.protocol = key->protocol;
	p.dst_port = key->remote_port;
	p.portless = key->protocol != IPPROTO_TCP;
	return judge(word, &p) == REASON_RULE;
}

struct bpf_map;

static long flow_visit(struct bpf_map *map, const struct flow_key *key, struct flow *flow,
		       struct flows_query *query)
{
	struct flow_key copy = *key;

	if (query->attachment && flow->attachment != query->attachment)
		return 0;
	if (flow_outlived(key, flow, bpf_ktime_get_boot_ns())) {
		flow_end(&copy, flow->attachment);
		query->ended++;
	}
	return 0;
}

#endif
