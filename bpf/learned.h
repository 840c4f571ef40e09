/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Learned addresses: what names were answered with. The daemon writes them
 * before it answers the query. They are asked only where the rules are silent.
 */
#ifndef NETFENCE_LEARNED_H
#define NETFENCE_LEARNED_H

#include "memo.h"

/* Who asks, when, and under which name the answer is yes. */
struct learning {
	__u64 word;
	__u64 now; /* boot_clock(), read when it is first needed; 0: not yet */
	__u64 deadline; /* of the grant, by the same clock */
	__u32 incarnation;
	__u32 attachment;
	__u32 lessons; /* lessons_of, from before anything was looked up; 0: names open nothing */
	__u32 name; /* 0: none */
};

static __always_inline struct learning learning_of(__u64 identity, __u64 word)
{
	struct learning learning = {
		.word = word,
		.incarnation = IDENTITY_INCARNATION(identity),
		.attachment = IDENTITY_ATTACHMENT(identity),
	};

	return learning;
}

/* matches compares the ports of a clause or of a grant. */
static __always_inline int matches(__u8 match, __u16 first, __u16 last, const struct packet *p)
{
	if (match == MATCH_ANY)
		return 1;
	if (p->portless || p->dst_port < first || p->dst_port > last)
		return 0;
	if (match == MATCH_TCP_UDP)
		return p->protocol == IPPROTO_TCP || p->protocol == IPPROTO_UDP;
	return match == p->protocol;
}

/*
 * The map may give the memory of an entry that is replaced or removed to another
 * key at once (kernel/bpf/memalloc.c), while a program that has looked it up
 * still reads it. The key is written before the value and stands at its head too:
 * if it is still the same when the rest has been read, so was the rest.
 */
#define ATTEMPTS 2 /* one for what has been replaced, one for what replaced it */

/*
 * name_holds is true for a name that the policy in force justifies. learned is
 * when it was learned last.
 */
__attribute__((noinline)) int name_holds(__u64 word, __u32 incarnation, __u32 id, __u64 *learned)
{
	struct name_key key = { .incarnation = incarnation, .id = id };
	int attempt;

	if (!learned)
		return 0;
	for (attempt = 0; attempt < ATTEMPTS; attempt++) {
		const struct name *name = bpf_map_lookup_elem(&nf_names, &key);
		__u32 cut;

		if (!name)
			return 0;
		cut = name->cut;
		*learned = name->learned;
		barrier();
		if (name->key.id == id && name->key.incarnation == incarnation)
			return !cut || WORD_GENERATION(word) < cut;
		barrier();
	}
	return 0;
}

/*
 * granted is the name by which a grant opens p now, or 0. Like name_holds it is
 * a function of its own, so that the verifier walks it once and not once for
 * each way that leads to it: a program is loaded in half the time.
 */
__attribute__((noinline)) __u32 granted(const struct grant *grant, __u64 now,
					const struct packet *p)
{
	if (!grant || !p || grant->deadline <= now ||
	    !matches(grant->match, grant->first, grant->last, p))
		return 0;
	return grant->name;
}

struct recall {
	struct learned_key key;
	const struct packet *packet;
	struct learning *learning;
};

/* One chunk of grants. The first that is missing is the end. */
static long recall_chunk(__u32 i, struct recall *recall)
{
	struct learning *learning = recall->learning;
	const struct learned *learned;
	int attempt, place;
	__u64 last;

	recall->key.chunk = i;
	for (attempt = 0; attempt < ATTEMPTS; attempt++) {
		__u32 open[GRANTS_PER_CHUNK] = {};
		__u64 deadline[GRANTS_PER_CHUNK];

		learned = bpf_map_lookup_elem(&nf_learned, &recall->key);
		if (!learned)
			return 1;
		if (!learning->now)
			learning->now = boot_clock();
		for (place = 0; place < GRANTS_PER_CHUNK; place++) {
			deadline[place] = learned->grants[place].deadline;
			open[place] =
				granted(&learned->grants[place], learning->now, recall->packet);
		}
		barrier();
		if (learned->key.incarnation != recall->key.incarnation ||
		    learned->key.chunk != recall->key.chunk ||
		    !same_address(&learned->key.address, &recall->key.address))
			continue;
		for (place = 0; place < GRANTS_PER_CHUNK; place++) {
			if (!open[place] ||
			    !name_holds(learning->word, learning->incarnation, open[place], &last))
				continue;
			learning->name = open[place];
			learning->deadline = deadline[place];
			return 1;
		}
		return 0;
	}
	return 0;
}

/* lessons_of is 0 where there is nothing to look up: see nf_lessons. */
static __always_inline __u32 lessons_of(__u32 attachment)
{
	volatile __u64 *lessons = bpf_map_lookup_elem(&nf_lessons, &attachment);

	return lessons ? *lessons : 0;
}

/* by_learned sets learning->name and returns 1 if the destination is open by a name. */
__attribute__((noinline)) int by_learned(struct learning *learning, const struct packet *p,
					 const struct address *destination)
{
	struct recall recall = {};

	if (!learning || !p || !destination)
		return 0;
	recall.key.address = *destination;
	recall.key.incarnation = learning->incarnation;
	recall.packet = p;
	recall.learning = learning;
	learning->name = 0;
	if (!recall_chunk(0, &recall)) /* few addresses have more than one */
		bpf_loop(MAX_CHUNKS, recall_chunk, &recall, 0);
	return learning->name != 0;
}

#endif
