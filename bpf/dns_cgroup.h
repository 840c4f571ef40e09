/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Queries of cgroups. A socket that turns to port 53 of any address is turned to
 * a DNS address on lo instead, which tells the listener whose query it is, and
 * believes to talk to whom it asked. Packets pass only to an address that was
 * written that way, which the socket itself remembers.
 *
 * Attachments nest, and the programs of the innermost run first. All programs
 * that a socket meets are those of its cgroup and the ones around it, so that of
 * whoever has written for it, the level says whether that is inside or outside.
 */
#ifndef NETFENCE_DNS_CGROUP_H
#define NETFENCE_DNS_CGROUP_H

#include "dns.h"
#include "loopback.h"

static __always_inline void dns_address(struct address *a, int ipv4, __u32 index, __u32 slot)
{
	__u32 low = slot << DNS_INDEX_BITS | index;

	if (ipv4) {
		set_ipv4(a, bpf_htonl(0x7f800000 | low));
		return;
	}
	a->word[0] = DNS_ULA;
	a->word[1] = bpf_htonl(0x4e530000);
	a->word[2] = 0;
	a->word[3] = bpf_htonl(low);
}

/* dns_written finds whom the socket asked when it was given the DNS address a. */
static __always_inline struct dns_server *dns_written(struct dns_servers *servers,
						      const struct address *a)
{
	__u32 slot = (bpf_ntohl(a->word[3]) & 0x7fffff) >> DNS_INDEX_BITS;
	struct dns_server *server;
	struct address written;

	if (!servers || !slot || slot > DNS_SERVERS)
		return NULL;
	server = &servers->slot[(slot - 1) % DNS_SERVERS];
	dns_address(&written, is_ipv4(a), IDENTITY_ATTACHMENT(server->identity), slot);
	return server->identity && same_address(&written, a) ? server : NULL;
}

enum dns_writer {
	WRITER_NOBODY, /* or an attachment that is no more */
	WRITER_OWN,
	WRITER_INNER,
	WRITER_OUTER,
};

static __always_inline enum dns_writer dns_writer(__u64 identity, const struct dns_server *server)
{
	__u32 own = IDENTITY_ATTACHMENT(identity);
	__u32 other = IDENTITY_ATTACHMENT(server->identity);
	struct attachment *self, *writer;

	if (server->identity == identity)
		return WRITER_OWN;
	self = bpf_map_lookup_elem(&nf_attachments, &own);
	writer = bpf_map_lookup_elem(&nf_attachments, &other);
	if (!self || !writer || writer->incarnation != IDENTITY_INCARNATION(server->identity) ||
	    writer->level == self->level)
		return WRITER_NOBODY;
	return writer->level > self->level ? WRITER_INNER : WRITER_OUTER;
}

/*
 * dns_slot remembers that the socket asks *to, and returns under which slot; 0:
 * there is no memory. A socket that asks more servers than there are slots has the
 * oldest forgotten.
 */
static __always_inline __u32 dns_slot(struct bpf_sock_addr *ctx, __u64 identity,
				      const struct address *to, __u16 listener)
{
	struct dns_servers *servers;
	struct dns_server *server;
	__u16 port = bpf_ntohs(ctx->user_port);
	__u32 at;

	if (!ctx->sk)
		return 0;
	servers = bpf_sk_storage_get(&nf_dns_sockets, ctx->sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!servers)
		return 0;
	for (at = 0; at < DNS_SERVERS; at++) {
		server = &servers->slot[at];
		if (server->identity == identity && server->port == port &&
		    server->listener == listener && same_address(&server->address, to))
			return at + 1;
	}
	at = servers->used++ % DNS_SERVERS;
	server = &servers->slot[at];
	server->address = *to;
	server->port = port;
	server->listener = listener;
	server->identity = identity;
	return at + 1;
}

/* Each namespace has a lo of its own. */
static __always_inline int dns_listens(__u64 netns)
{
	return netns == dns_setting(DNS_NETNS) || bpf_map_lookup_elem(&nf_dns_places, &netns);
}

enum dns_step {
	DNS_NOT_OURS, /* the rules judge */
	DNS_REFUSED,
	DNS_REWRITTEN, /* *to and the port are the listener's */
	DNS_WRITTEN, /* that was done already, here or by an attachment inside or around */
};

/*
 * dns_ask is what becomes of a socket that turns to *to. Its own attachment's DNS
 * address it may ask by name, at the listener's port, which is remembered like
 * any other server.
 */
__attribute__((noinline)) int dns_ask(struct bpf_sock_addr *ctx, __u64 identity, __u64 word,
				      struct address *to)
{
	__u32 own = IDENTITY_ATTACHMENT(identity);
	__u16 port = bpf_ntohs(ctx->user_port), listener;
	int query = port == PORT_DNS && intercepts(word), ours;
	__u32 slot;

	if (!to)
		return DNS_REFUSED;
	ours = in_dns_range(to);
	if (ctx->protocol != IPPROTO_TCP && ctx->protocol != IPPROTO_UDP)
		return DNS_NOT_OURS; /* its packets are judged */
	if (!query && !ours)
		return DNS_NOT_OURS;
	listener = dns_setting(DNS_PORT);
	if (!listener || !dns_listens(bpf_get_netns_cookie(ctx)))
		return DNS_REFUSED;
	if (ours && port == listener && ctx->sk) {
		struct dns_server *server =
			dns_written(bpf_sk_storage_get(&nf_dns_sockets, ctx->sk, NULL, 0), to);

		if (server && dns_writer(identity, server) != WRITER_NOBODY)
			return DNS_WRITTEN;
	}
	if (!query && ((bpf_ntohl(to->word[3]) & DNS_INDEX_MASK) != own ||
		       (port != listener && port != PORT_DNS)))
		return DNS_REFUSED;
	slot = dns_slot(ctx, identity, to, listener);
	if (!slot)
		return DNS_REFUSED;
	dns_address(to, is_ipv4(to), own, slot);
	ctx->user_port = bpf_htons(listener);
	return DNS_REWRITTEN;
}

/* dns_answered undoes dns_ask where a program looks whom it talks to. */
static __always_inline int dns_answered(struct bpf_sock_addr *ctx, struct address *from)
{
	__u64 identity = *(volatile __u64 *)bpf_get_local_storage(&nf_cgroups, 0);
	struct dns_server *server;

	if (!identity || !in_dns_range(from) || !ctx->sk)
		return 0;
	server = dns_written(bpf_sk_storage_get(&nf_dns_sockets, ctx->sk, NULL, 0), from);
	if (!server || server->identity != identity ||
	    ctx->user_port != bpf_htons(server->listener))
		return 0;
	*from = server->address;
	ctx->user_port = bpf_htons(server->port);
	return 1;
}

/*
 * dns_original finds the server that a query was for before its socket was turned to a
 * DNS address: the socket that the answer would go to remembers it. One that asks more
 * servers than it has slots may be found to have asked a later one, never one that
 * another socket has.
 */
static __always_inline int dns_original(struct __sk_buff *skb, struct dns_question *q)
{
	struct packet p = {
		.src = q->asked,
		.dst = q->client,
		.dst_port = q->client_port,
		.protocol = q->protocol,
	};
	struct bpf_sock *sk = receiver(skb, &p, q->listener, q->netns);
	struct dns_server *server;

	if (!sk)
		return 0;
	server = dns_written(bpf_sk_storage_get(&nf_dns_sockets, sk, NULL, 0), &q->asked);
	if (server && server->identity == q->identity && server->listener == q->listener) {
		q->server = server->address;
		q->server_port = server->port;
	}
	bpf_sk_release(sk);
	return q->server_port;
}

/* dns_binds: whoever held the listener's place would get the queries of others. */
static __always_inline int dns_binds(struct bpf_sock_addr *ctx, const struct address *at)
{
	__u64 listener = dns_setting(DNS_PORT);

	if (in_dns_range(at))
		return 1;
	return listener && bpf_ntohs(ctx->user_port) == listener &&
	       dns_listens(bpf_get_netns_cookie(ctx));
}

/*
 * dns_packet judges a packet to the DNS range. One that an attachment further
 * out has redirected this one did not intercept, so its rules have the word: of
 * the server that was asked.
 */
__attribute__((noinline)) int dns_packet(struct __sk_buff *skb, __u64 identity, __u64 word,
					 struct packet *p)
{
	struct bpf_sock *sk = skb->sk;
	struct learning learning = learning_of(identity, word);
	struct dns_server *server;
	enum dns_writer writer;
	enum reason reason;

	if (!p || skb->ifindex != LOOPBACK_IFINDEX || p->portless || !sk)
		return REASON_PROTECTED;
	if (p->dst_port != dns_setting(DNS_PORT))
		return REASON_PROTECTED;
	sk = bpf_sk_fullsock(sk);
	if (!sk)
		return REASON_PROTECTED;
	server = dns_written(bpf_sk_storage_get(&nf_dns_sockets, sk, NULL, 0), &p->dst);
	if (!server)
		return REASON_PROTECTED;
	writer = dns_writer(identity, server);
	if (writer == WRITER_NOBODY)
		return REASON_PROTECTED;
	if (writer != WRITER_OUTER)
		return REASON_NONE;
	if (intercepts(word) && server->port == PORT_DNS)
		return REASON_DNS; /* it does now, and the socket is older */
	p->dst = server->address;
	p->dst_port = server->port;
	if (!asks_rules(word))
		return WORD_SLOT(word) ? guarded(&learning, p) : silence(word);
	if (!is_loopback(&p->dst))
		return judge_apart(&learning, p);
	if (word & WORD_LOOPBACK_DENY)
		return REASON_LOOPBACK;
	reason = by_rules(WORD_SLOT(word), p, &p->dst);
	if (reason == REASON_NO_RULE)
		return word & WORD_LOOPBACK_ALLOW ? REASON_NONE : REASON_LOOPBACK;
	return reason;
}

#endif
