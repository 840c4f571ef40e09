/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Telling the daemon of what was dropped. Nothing here decides, and nothing
 * waits: what there is no room for is counted as lost.
 */
#ifndef NETFENCE_EVENT_H
#define NETFENCE_EVENT_H

#include "memo.h"

/*
 * Nanoseconds between two events of an attachment, in the long run; a second's
 * worth may come at once. 0: nobody listens. The verifier takes out what a
 * constant makes unreachable.
 */
const volatile __u64 event_interval = 0;

/* Audit is for what the policy decides: not for what is above it, or was never its own. */
static __always_inline int is_audited(__u64 word, enum reason reason)
{
	return word & WORD_AUDIT && reason != REASON_UNATTACHED && reason != REASON_GUARD &&
	       reason != REASON_PROTECTED;
}

/*
 * The bucket's fields are plain. Processors that meet in one may each take the
 * same token, and one that was interrupted between its load and its store may
 * give a second's worth back: the rate is exceeded by that, while the ring bounds
 * what all of them together can leave. A lock would let a flood from one
 * processor delay the packets of another. Lost events are counted exactly.
 */
static __always_inline struct event_bucket *due_bucket(__u32 attachment)
{
	struct event_bucket *bucket = bpf_map_lookup_elem(&nf_event_buckets, &attachment);
	__u64 now = tick_clock();

	if (!bucket)
		return NULL;
	if (bucket->due < now)
		bucket->due = now;
	if (bucket->due + event_interval <= now + SECOND)
		return bucket;
	__sync_fetch_and_add(&bucket->lost, 1);
	return NULL;
}

__attribute__((noinline)) int tell(__u64 identity, __u64 word, __u32 reason, __u32 bytes,
				   const struct packet *p)
{
	struct event_bucket *bucket = due_bucket(IDENTITY_ATTACHMENT(identity));
	struct event *event;

	if (!p || !bucket)
		return 0;
	event = bpf_ringbuf_reserve(&nf_events, sizeof(*event), 0);
	if (!event) {
		__sync_fetch_and_add(&bucket->lost, 1);
		return 0;
	}
	bucket->due += event_interval;
	event->time = bpf_ktime_get_boot_ns();
	event->identity = identity;
	event->lost = bucket->lost;
	event->src = p->src;
	event->dst = p->dst;
	event->length = bytes;
	event->src_port = p->portless ? 0 : p->src_port;
	event->dst_port = p->portless ? 0 : p->dst_port;
	event->protocol = p->protocol;
	event->reason = reason;
	event->rule = p->rule;
	event->would_deny = is_audited(word, reason);
	event->pad = 0;
	event->generation = WORD_GENERATION(word);
	event->pad2 = 0;
	bpf_ringbuf_submit(event, 0);
	return 0;
}

#endif
