/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What a processor has found out for an earlier packet: what the rules say of a
 * destination, that a flow passes by a name, what time it is. Each entry says for
 * which policy word it holds, so a change of policy is a miss, at once.
 *
 * An entry is written by its own processor alone, but a program that writes one
 * may be interrupted by another that reads or writes it: a softirq, or on a
 * preemptible kernel another process (measured: false verdicts within seconds).
 * So it carries a sequence, which whoever writes makes odd by an atomic exchange,
 * and a reader needs it even, and the same after it has read the rest. On one
 * processor, keeping the compiler from moving accesses is enough.
 */
#ifndef NETFENCE_MEMO_H
#define NETFENCE_MEMO_H

#include "maps.h"
#include "parse.h"

#define barrier() asm volatile("" ::: "memory")
#define SECOND 1000000000ULL /* nanoseconds */
#define GOLDEN_RATIO 0x9e3779b1 /* 2^32 divided by it, odd */

/* Nanoseconds of a jiffy, set at load. */
const volatile __u64 tick = 4000000;

/* tick_clock counts in nanoseconds, in steps of a tick, and not while suspended. */
static __always_inline __u64 tick_clock(void)
{
	return bpf_jiffies64() * tick;
}

/*
 * boot_clock is bpf_ktime_get_boot_ns(), read once a tick. Of two programs that
 * interrupt each other one may leave the time of a tick earlier.
 */
static __always_inline __u64 boot_clock(void)
{
	__u32 zero = 0;
	struct clock *clock = bpf_map_lookup_elem(&nf_clock, &zero);
	__u64 now = bpf_jiffies64(), boot;

	if (!clock)
		return ~0ULL; /* not reached; all is over by then */
	if (clock->tick == now)
		return clock->boot;
	boot = bpf_ktime_get_boot_ns();
	clock->boot = boot;
	barrier();
	clock->tick = now;
	return boot;
}

/* Without branches: the verifier walks each one's ways, and what follows, apart. */
static __always_inline int same_address(const struct address *a, const struct address *b)
{
	return !((a->word[0] ^ b->word[0]) | (a->word[1] ^ b->word[1]) | (a->word[2] ^ b->word[2]) |
		 (a->word[3] ^ b->word[3]));
}

static __always_inline __u32 fold(const struct address *a)
{
	return (a->word[0] ^ a->word[1] ^ a->word[2]) * 31 + a->word[3];
}

/* Only what has ports is remembered: there are few others, and fragments among them. */
static __always_inline struct ruling *ruling_place(__u32 incarnation, const struct packet *p)
{
	__u32 place = fold(&p->dst) ^ ((__u32)p->dst_port << 8 | p->protocol) ^ incarnation << 24;

	place = (place * GOLDEN_RATIO) >> 16;
	place &= MAX_RULINGS - 1;
	return bpf_map_lookup_elem(&nf_rulings, &place);
}

/* ruling_recall returns -1 if it does not know, else an enum reason, p->rule and *lessons. */
static __always_inline int ruling_recall(struct ruling *r, __u64 word, __u32 incarnation,
					 struct packet *p, __u32 *lessons)
{
	__u32 sequence, rule;
	int reason;

	if (!r)
		return -1;
	sequence = *(volatile __u32 *)&r->sequence;
	barrier();
	if (sequence & 1 || r->word != word || r->incarnation != incarnation ||
	    r->port != p->dst_port || r->protocol != p->protocol ||
	    !same_address(&r->address, &p->dst))
		return -1;
	reason = r->reason;
	rule = r->rule;
	*lessons = r->lessons;
	barrier();
	if (*(volatile __u32 *)&r->sequence != sequence)
		return -1;
	p->rule = rule;
	return reason;
}

static __always_inline void ruling_note(struct ruling *r, __u64 word, __u32 incarnation,
					const struct packet *p, enum reason reason, __u32 lessons)
{
	__u32 sequence;

	if (!r)
		return;
	sequence = *(volatile __u32 *)&r->sequence;
	if (sequence & 1 ||
	    __sync_val_compare_and_swap(&r->sequence, sequence, sequence + 1) != sequence)
		return;
	barrier();
	r->word = word;
	r->incarnation = incarnation;
	r->address = p->dst;
	r->port = p->dst_port;
	r->protocol = p->protocol;
	r->reason = reason;
	r->rule = p->rule;
	r->lessons = lessons;
	barrier();
	*(volatile __u32 *)&r->sequence = sequence + 2;
}

static __always_inline struct pass *pass_place(__u32 incarnation, const struct packet *p)
{
	__u32 place = fold(&p->dst) ^ (fold(&p->src) << 5) ^ p->protocol ^ incarnation << 24 ^
		      ((__u32)p->src_port << 16 | p->dst_port);

	place = (place * GOLDEN_RATIO) >> 16;
	place &= MAX_PASSES - 1;
	return bpf_map_lookup_elem(&nf_passes, &place);
}

static __always_inline int pass_recall(struct pass *pass, __u64 word, __u32 incarnation,
				       const struct packet *p)
{
	__u32 sequence;

	if (!pass)
		return 0;
	sequence = *(volatile __u32 *)&pass->sequence;
	barrier();
	if (sequence & 1 || pass->word != word || pass->incarnation != incarnation ||
	    pass->src_port != p->src_port || pass->dst_port != p->dst_port ||
	    pass->protocol != p->protocol || pass->until <= bpf_jiffies64() ||
	    !same_address(&pass->dst, &p->dst) || !same_address(&pass->src, &p->src))
		return 0;
	barrier();
	return *(volatile __u32 *)&pass->sequence == sequence;
}

static __always_inline void pass_note(struct pass *pass, __u64 word, __u32 incarnation,
				      const struct packet *p, __u64 until)
{
	__u32 sequence;

	if (!pass)
		return;
	sequence = *(volatile __u32 *)&pass->sequence;
	if (sequence & 1 ||
	    __sync_val_compare_and_swap(&pass->sequence, sequence, sequence + 1) != sequence)
		return;
	barrier();
	pass->word = word;
	pass->incarnation = incarnation;
	pass->until = until;
	pass->src = p->src;
	pass->dst = p->dst;
	pass->src_port = p->src_port;
	pass->dst_port = p->dst_port;
	pass->protocol = p->protocol;
	barrier();
	*(volatile __u32 *)&pass->sequence = sequence + 2;
}

#endif
