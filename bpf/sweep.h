/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Which flows are over. The daemon has them walked; see nf_flows_end. */
#ifndef NETFENCE_SWEEP_H
#define NETFENCE_SWEEP_H

#include "flow.h"

/*
 * name_outlived: the policy in force cut the name of a learned flow, or has no use
 * for one. It notes that the name is in use, so that the daemon keeps it.
 */
static __always_inline int name_outlived(const struct flow_key *key, const struct flow *flow,
					 __u64 word, __u64 now)
{
	struct name_key name_key = { .incarnation = key->incarnation, .id = flow->name };
	struct name *name;
	__u64 learned;

	if (WORD_MODE(word) != MODE_ALLOWLIST || !(word & WORD_DNS))
		return 1;
	if (!name_holds(word, key->incarnation, flow->name, &learned) ||
	    learned + flow_limit(key->protocol) <= now)
		return 1;
	name = bpf_map_lookup_elem(&nf_names, &name_key);
	if (name)
		name->used = now;
	return 0;
}

/* serves: the policy in force has the flow's kind of reply. */
static __always_inline int serves(const struct flow_key *key, __u64 word)
{
	return flows_serve(word, key->loopback) &&
	       (key->protocol != IPPROTO_UDP || answers_udp(word, key->local_port));
}

/* flow_outlived: its time is over, or the policy in force denies the peer. */
static __always_inline int flow_outlived(const struct flow_key *key, const struct flow *flow,
					 __u64 now)
{
	struct learning learning = {};
	struct packet p = {};
	enum reason reason;
	__u64 word;

	if (flow->deadline <= now)
		return 1;
	word = policy_word(FLOW_ATTACHMENT(flow->owner));
	if (key->learned ? name_outlived(key, flow, word, now) : !serves(key, word))
		return 1;
	p.dst = key->remote;
	p.protocol = key->protocol;
	p.dst_port = key->remote_port;
	p.portless = key->protocol != IPPROTO_TCP && key->protocol != IPPROTO_UDP;
	learning.word = word & ~(__u64)WORD_DNS; /* the rules alone */
	learning.incarnation = key->incarnation;
	reason = judge(&learning, &p);
	return reason == REASON_RULE || reason == REASON_GUARD;
}

static long flow_visit(struct bpf_map *map, const struct flow_key *key, struct flow *flow,
		       struct flows_query *query)
{
	struct flow_key copy = *key;

	if (query->attachment && FLOW_ATTACHMENT(flow->owner) != query->attachment)
		return 0;
	if (flow_outlived(key, flow, boot_clock())) {
		flow_end(&copy, FLOW_ATTACHMENT(flow->owner));
		query->ended++;
	}
	return 0;
}

#endif
