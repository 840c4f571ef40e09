/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Telling the daemon of what was dropped. Nothing here decides, and nothing
 * waits: what there is no room for is counted as lost.
 */
#ifndef NETFENCE_EVENT_H
#define NETFENCE_EVENT_H

#include "maps.h"
#include "parse.h"

#define NANOSECONDS 1000000000ULL /* a second */

/*
 * Nanoseconds between two events of an attachment, in the long run; a second's
 * worth may come at once. 0: nobody listens. The verifier takes out what a
 * constant makes unreachable.
 */
const volatile __u64 event_interval = 0;

/*
 * The bucket's fields are plain. Processors that meet in one may each take the
 * same token, and one that was interrupted between its load and its store may
 * give a second's worth back: the rate is exceeded by that, while the ring bounds
 * what all of them together can leave. A lock would let a flood from one
 * processor delay the packets of another. Lost events are counted exactly.
 *
 * The clock is the coarse one, good to a tick: it costs a third of the other.
 */
__attribute__((noinline)) int tell(__u64 identity, __u32 reason, __u32 bytes,
				   const struct packet *p)
{
	__u32 attachment = IDENTITY_ATTACHMENT(identity);
	__u64 now = bpf_ktime_get_coarse_ns();
	struct event_bucket *bucket = bpf_map_lookup_elem(&nf_event_buckets, &attachment);
	struct event *event;
	__u64 due;

	if (!p || !bucket)
		return 0;
	due = bucket->due;
	if (due < now)
		due = now;
	if (due + event_interval > now + NANOSECONDS)
		goto lost;
	event = bpf_ringbuf_reserve(&nf_events, sizeof(*event), 0);
	if (!event)
		goto lost;
	bucket->due = due + event_interval;
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
	__builtin_memset(event->pad, 0, sizeof(event->pad));
	bpf_ringbuf_submit(event, 0);
	return 0;
lost:
	__sync_fetch_and_add(&bucket->lost, 1);
	return 0;
}

#endif
