/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Flows are asked for only after the rules were silent and no learned address was
 * live. None lets a connection be opened from inside: no bare SYN passes on one.
 *
 * Reply flows: what somebody outside has opened may be answered. One begins only
 * with an inbound SYN or echo request.
 *
 * Learned flows: what the workload has opened while the address was open by name
 * goes on when it no longer is, until it is idle for too long, its name was not
 * learned again for too long, or the name is cut.
 */
#ifndef NETFENCE_FLOW_H
#define NETFENCE_FLOW_H

#include "verdict.h"

#define FLOW_OPENING (60 * SECOND) /* until the peer has answered, and for echo */
#define FLOW_IDLE_TCP (600 * SECOND) /* since the last packet of who has opened it */
#define FLOW_IDLE_OTHER (60 * SECOND)
#define PORT_DNS 53

#define ICMP_ECHO_REPLY_V4 0
#define ICMP_ECHO_REQUEST_V4 8
#define ICMPV6_ECHO_REQUEST_TYPE 128
#define ICMPV6_ECHO_REPLY_TYPE 129

/* Set by the daemon at load: limits.flows, dns.max_flow. */
const volatile __u64 max_flows_per_attachment = 4096;
const volatile __u64 max_flow_tcp = 24 * 3600 * SECOND;
const volatile __u64 max_flow_other = 4 * 3600 * SECOND;

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
	if (p->protocol == IPPROTO_TCP || p->protocol == IPPROTO_UDP) {
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
	key->remote_port = p->dst_port; /* 0: it has none */
}

/*
 * flow_end gives the flow's room back to who has it. A packet in flight through a
 * detach may note one after the last was ended: whoever is next at that index
 * did not count it.
 */
static __always_inline void flow_end(const struct flow_key *key, __u32 attachment)
{
	__u64 *flows = bpf_map_lookup_elem(&nf_flow_counts, &attachment);
	struct attachment *owner = bpf_map_lookup_elem(&nf_attachments, &attachment);

	if (!bpf_map_delete_elem(&nf_flows, key) && flows && owner &&
	    owner->incarnation == key->incarnation)
		__sync_fetch_and_add(flows, -1);
}

/*
 * flow_find reads a flow, whose memory may be given to another key at once when it
 * is removed (see learned.h). Whose it is, of which attachment and nearly always
 * of which socket, is looked at after the rest was read; an entry of an earlier
 * build has no port. A store that comes too late moves another flow's deadline by
 * no more than its idle time; all else of an entry is written by
 * bpf_map_update_elem alone, which makes a new one.
 */
static __always_inline struct flow *flow_find(const struct flow_key *key, __u32 attachment,
					      struct flow *copy)
{
	struct flow *flow = bpf_map_lookup_elem(&nf_flows, key);
	__u32 owner;

	if (!flow)
		return NULL;
	copy->deadline = flow->deadline;
	copy->name = flow->name;
	barrier();
	owner = flow->owner;
	if (FLOW_ATTACHMENT(owner) != attachment ||
	    (FLOW_PORT(owner) && FLOW_PORT(owner) != key->local_port))
		return NULL;
	return flow;
}

/* flow_begin returns 0 if there is no room for the flow. */
static __always_inline int flow_begin(const struct flow_key *key, __u32 attachment, __u64 *flows,
				      __u32 name, __u64 deadline)
{
	struct flow flow = {
		.deadline = deadline,
		.owner = FLOW_OWNER(attachment, key->local_port),
		.name = name,
	};
	struct flow seen = {}, *known = flow_find(key, attachment, &seen);

	if (known && seen.name == name) {
		if (seen.deadline < deadline)
			known->deadline = deadline;
		return 1;
	}
	if (known) {
		if (flow.deadline < seen.deadline)
			flow.deadline = seen.deadline;
		return !bpf_map_update_elem(&nf_flows, key, &flow, BPF_EXIST);
	}
	if (*flows >= max_flows_per_attachment)
		return 0;
	__sync_fetch_and_add(flows, 1);
	if (!bpf_map_update_elem(&nf_flows, key, &flow, BPF_NOEXIST))
		return 1;
	__sync_fetch_and_add(flows, -1);
	return 0;
}

struct port_walk {
	__u32 slot;
	__u32 next;
	__u16 port;
	__u16 found;
};

static long walk_ports(__u32 i, struct port_walk *walk)
{
	void *clauses = bpf_map_lookup_elem(&nf_clauses, &walk->slot);
	const struct clause *c;

	if (!clauses)
		return 1;
	c = bpf_map_lookup_elem(clauses, &walk->next);
	if (!c || c->match != MATCH_UDP)
		return 1;
	walk->found = walk->port >= c->first && walk->port <= c->last;
	walk->next = c->next;
	return walk->found || !walk->next;
}

/* answers_udp: the policy says that datagrams to this port of the workload's are answered. */
__attribute__((noinline)) int answers_udp(__u64 word, __u32 port)
{
	struct port_walk walk = { .slot = WORD_SLOT(word), .port = port };

	if (!(word & WORD_REPLIES_UDP))
		return 0;
	bpf_loop(MAX_CHAIN, walk_ports, &walk, 0); /* they begin at clause 0 */
	return walk.found;
}

/*
 * flow_inbound notes what comes from outside. It never drops. What claims to come
 * from loopback, port 53 or a group begins nothing.
 */
static __always_inline void flow_inbound(__u64 identity, __u64 word, const struct packet *p,
					 int loopback)
{
	__u32 attachment = IDENTITY_ATTACHMENT(identity);
	__u64 *flows = bpf_map_lookup_elem(&nf_flow_counts, &attachment);
	struct flow seen = {}, *flow;
	struct flow_key key;
	__u64 now;

	if (!flows || p->fragment)
		return;
	if (p->protocol == IPPROTO_TCP) {
		if (!is_bare_syn(p) && !*flows)
			return;
	} else if (p->protocol == IPPROTO_UDP) {
		if (!(word & WORD_REPLIES_UDP))
			return;
	} else if (!is_echo(p, 0)) {
		return;
	}
	if (is_multicast(&p->dst) || is_multicast(&p->src) || is_unspecified(&p->src))
		return;
	if (!loopback && (is_loopback(&p->src) || is_loopback(&p->dst)))
		return;
	if (!p->portless && p->src_port == PORT_DNS)
		return;
	if (p->protocol == IPPROTO_UDP && !answers_udp(word, p->dst_port))
		return;

	inbound_key(&key, p, IDENTITY_INCARNATION(identity), loopback);
	now = boot_clock();
	if (p->protocol != IPPROTO_TCP || is_bare_syn(p)) {
		flow_begin(&key, attachment, flows, 0, now + FLOW_OPENING);
		return;
	}
	if (p->tcp_flags & TCP_FLAG_RST_BYTE) {
		flow_end(&key, attachment);
		key.learned = 1;
		flow_end(&key, attachment);
		return;
	}
	flow = flow_find(&key, attachment, &seen);
	if (flow && seen.deadline > now)
		flow->deadline = now + FLOW_IDLE_TCP;
}

/* flow_permits is asked when no rule speaks of an outbound packet. */
static __always_inline int flow_permits(__u64 identity, const struct packet *p, int loopback)
{
	__u32 attachment = IDENTITY_ATTACHMENT(identity);
	__u64 *flows = bpf_map_lookup_elem(&nf_flow_counts, &attachment);
	struct flow_key key;
	struct flow seen = {};

	if (!flows || !*flows || p->fragment)
		return 0;
	if (p->protocol == IPPROTO_TCP) {
		if (is_bare_syn(p))
			return 0;
	} else if (p->protocol != IPPROTO_UDP && !is_echo(p, 1)) {
		return 0;
	}
	outbound_key(&key, p, IDENTITY_INCARNATION(identity), loopback);
	if (!flow_find(&key, attachment, &seen) || seen.deadline <= boot_clock())
		return 0;
	if (p->protocol == IPPROTO_TCP && p->tcp_flags & TCP_FLAG_RST_BYTE)
		flow_end(&key, attachment);
	return 1;
}

static __always_inline void learned_flow_key(struct flow_key *key, const struct packet *p,
					     __u32 incarnation)
{
	outbound_key(key, p, incarnation, 0);
	key->learned = 1;
}

static __always_inline __u64 flow_idle(const struct packet *p)
{
	return p->protocol == IPPROTO_TCP ? FLOW_IDLE_TCP : FLOW_IDLE_OTHER;
}

static __always_inline __u64 flow_limit(__u8 protocol)
{
	return protocol == IPPROTO_TCP ? max_flow_tcp : max_flow_other;
}

/*
 * learned_flow_note is told of packets that pass by a name. Where there is no room,
 * the flow ends with the grant, and is counted.
 */
__attribute__((noinline)) int learned_flow_note(__u64 identity, const struct packet *p,
						const struct learning *learning)
{
	__u32 attachment = IDENTITY_ATTACHMENT(identity);
	__u64 *flows = bpf_map_lookup_elem(&nf_flow_counts, &attachment);
	struct flow_key key;
	__u64 idle;

	if (!p || !learning || !flows || p->fragment)
		return 0;
	learned_flow_key(&key, p, learning->incarnation);
	if (p->protocol == IPPROTO_TCP && p->tcp_flags & TCP_FLAG_RST_BYTE) {
		flow_end(&key, attachment);
		return 0;
	}
	idle = is_bare_syn(p) ? FLOW_OPENING : flow_idle(p);
	if (!flow_begin(&key, attachment, flows, learning->name, learning->now + idle)) {
		__u32 index = attachment * MAX_REASONS + UNNOTED_FLOWS;
		__u64 *unnoted = bpf_map_lookup_elem(&nf_drops, &index);

		if (unnoted)
			__sync_fetch_and_add(unnoted, 1);
	}
	return 0;
}

/* learned_flow_permits is asked when no grant for an outbound packet is live. */
__attribute__((noinline)) int learned_flow_permits(__u64 identity, const struct packet *p,
						   struct learning *learning)
{
	__u32 attachment = IDENTITY_ATTACHMENT(identity);
	__u64 *flows = bpf_map_lookup_elem(&nf_flow_counts, &attachment);
	struct flow seen = {}, *flow;
	struct flow_key key;
	__u64 learned;

	if (!p || !learning || !flows || !*flows || p->fragment)
		return 0;
	if (p->protocol == IPPROTO_TCP && is_bare_syn(p))
		return 0;
	learned_flow_key(&key, p, learning->incarnation);
	flow = flow_find(&key, attachment, &seen);
	if (!flow)
		return 0;
	if (!learning->now)
		learning->now = boot_clock();
	if (seen.deadline <= learning->now)
		return 0;
	/* whenever and however the name was cut, no flow outlives it */
	if (!name_holds(learning->word, learning->incarnation, seen.name, &learned) ||
	    learned + flow_limit(p->protocol) <= learning->now)
		return 0;
	flow->deadline = learning->now + flow_idle(p);
	if (p->protocol == IPPROTO_TCP && p->tcp_flags & TCP_FLAG_RST_BYTE)
		flow_end(&key, attachment);
	return 1;
}

static __always_inline int has_flows(__u32 attachment)
{
	__u64 *flows = bpf_map_lookup_elem(&nf_flow_counts, &attachment);

	return flows && *flows;
}

/* flows_serve: silence of the rules is a denial, and replies are excepted. */
static __always_inline int flows_serve(__u64 word, int loopback)
{
	if (!(word & WORD_REPLIES))
		return 0;
	/* on lo, the default of denylist is closed too */
	return WORD_MODE(word) == MODE_ALLOWLIST || (loopback && WORD_MODE(word) == MODE_DENYLIST);
}

#endif
