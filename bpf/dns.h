/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What is a query, and whether it is intercepted; see dns_cgroup.h, dns_interface.h. */
#ifndef NETFENCE_DNS_H
#define NETFENCE_DNS_H

#include "flow.h"

#define DNS_INDEX_MASK ((1 << DNS_INDEX_BITS) - 1)
#define DNS_ULA bpf_htonl(0xfd4e4644) /* the first half of the /64s that are ours */

/* Without a policy, as in block-all, queries are taken to be refused. */
static __always_inline int intercepts(__u64 word)
{
	switch (WORD_MODE(word)) {
	case MODE_ALLOWLIST:
	case MODE_DENYLIST:
	case MODE_DISABLED:
		return !!(word & WORD_DNS);
	}
	return 1;
}

/* A fragment that is not the first has no port to know it by: the rules judge it. */
static __always_inline int is_query(const struct packet *p)
{
	return !p->arp && !p->portless && p->dst_port == PORT_DNS;
}

/*
 * The DNS addresses of attachments, 127.128.0.0/9 and fd4e:4644:4e53::/64, end in
 * slot:4|index:19. Slot 0 is for the host's own use; the others stand for a server
 * that a socket has asked, see nf_dns_sockets.
 */
static __always_inline int in_dns_range(const struct address *a)
{
	if (is_ipv4(a))
		return (a->word[3] & bpf_htonl(0xff800000)) == bpf_htonl(0x7f800000);
	return a->word[0] == DNS_ULA && a->word[1] == bpf_htonl(0x4e530000);
}

static __always_inline __u64 dns_setting(enum dns_setting which)
{
	__u32 key = which;
	volatile __u64 *value = bpf_map_lookup_elem(&nf_dns, &key);

	return value ? *value : 0;
}

#endif
