/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The verdict on a packet that leaves by a device, or that a cgroup sends other than
 * through lo, and what a processor remembers of it. Only here are rulings noted: who
 * asks has by then done all that comes before the rules, and the next packet for
 * which the ruling is found does none of it.
 */
#ifndef NETFENCE_LEAVE_H
#define NETFENCE_LEAVE_H

#include "flow.h"

/*
 * What passes by a name is asked of the maps once a second, and not for each packet.
 * A flow is known to be in use as well as that, and a grant that ends while the
 * host is suspended ends a second later. A SYN that passes is no flow in use yet.
 */
static __always_inline void pass_until(const struct packet *p, const struct learning *learning)
{
	__u64 left = learning->deadline - learning->now;

	if (p->portless || p->tcp_flags & TCP_FLAG_SYN_BYTE)
		return;
	if (!learning->deadline || p->tcp_flags & TCP_FLAG_RST_BYTE)
		left = 0;
	if (left > SECOND)
		left = SECOND;
	pass_note(pass_place(learning->incarnation, p), learning->word, learning->incarnation, p,
		  bpf_jiffies64() + left / tick);
}

/*
 * remembered is the verdict on a packet with ports if this processor has found it out
 * before, with all that comes before the rules; else -1.
 */
static __always_inline int remembered(__u64 identity, __u64 word, struct packet *p)
{
	__u32 attachment = IDENTITY_ATTACHMENT(identity);
	__u32 incarnation = IDENTITY_INCARNATION(identity);
	__u32 lessons = lessons_for(word, attachment), unopened = 0;

	if (word & WORD_SOURCE)
		return -1;
	if (WORD_SLOT(word)) {
		int ruled = ruling_recall(ruling_place(incarnation, p), word, incarnation, p,
					  &unopened);

		if (ruled != REASON_NO_RULE)
			return ruled;
		if (!asks_rules(word))
			return silence(word);
		if (bypasses_names(word, p))
			return REASON_NAME_PROTOCOL;
		if (WORD_MODE(word) == MODE_DENYLIST)
			return REASON_NONE;
		p->unruled = 1;
		p->unopened = lessons == unopened;
		if (p->unopened && !has_flows(attachment))
			return REASON_NO_RULE;
	}
	if (lessons && !(p->tcp_flags & (TCP_FLAG_SYN_BYTE | TCP_FLAG_RST_BYTE)) &&
	    pass_recall(pass_place(incarnation, p), word, incarnation, p))
		return REASON_NONE;
	return -1;
}

/* judge_leaving is judge, and notes for remembered() what the rules said. */
static __always_inline enum reason judge_leaving(struct learning *learning, struct packet *p)
{
	enum reason reason = judge(learning, p);

	if (!WORD_SLOT(learning->word) || p->portless || p->timed || p->unopened ||
	    p->ruled == REASON_NO_TABLE)
		return reason;
	ruling_note(ruling_place(learning->incarnation, p), learning->word, learning->incarnation,
		    p, p->ruled, reason == REASON_NO_RULE ? learning->lessons : 0);
	return reason;
}

/* leaves is the verdict in every mode. The verifier walks it once for each program. */
__attribute__((noinline)) int leaves(__u64 identity, __u64 word, struct packet *p)
{
	struct learning learning = learning_of(identity, word);
	enum reason reason;

	if (!p)
		return REASON_TRUNCATED;
	reason = judge_leaving(&learning, p);
	if (!asks_rules(word))
		return reason == REASON_NO_RULE ? silence(word) : reason;
	if (reason == REASON_NONE && learning.name) {
		learned_flow_note(identity, p, &learning);
		pass_until(p, &learning);
	}
	if (reason != REASON_NO_RULE)
		return reason;
	if (word & WORD_REPLIES && flow_permits(identity, p, 0))
		return REASON_NONE;
	if (word & WORD_DNS && learned_flow_permits(identity, p, &learning))
		return REASON_NONE;
	return reason;
}

#endif
