// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The programs. Each only adapts its hook to the logic in the headers:
 *
 *   nf_out_*   tc, where the workload's packets enter the host: the verdict
 *   nf_host_*  tc egress of a device that the daemon shares: likewise, but for
 *              the daemon's own sockets
 *   nf_in_*    tc, the other side of the same device: reply flows, never a drop
 *   nf_cg_*    cgroup: the verdict on egress, reply flows on ingress
 *   nf_connect*, nf_sendmsg*  cgroup: the same verdict early enough for EPERM;
 *              what they let pass is still judged packet by packet. They turn
 *              queries to the DNS listener; nf_recvmsg* and nf_getpeername* hide that
 *   nf_bind*   cgroup: nobody takes the listener's place
 *   nf_dns_return  tc: answers from the DNS namespace to interfaces
 *   nf_flows_end, nf_dns_flows_end, nf_dns_original  nowhere: the daemon runs them
 *
 * _l2 is for devices with a link-layer header, _l3 for those without (tun).
 */
#include "dns_cgroup.h"
#include "dns_interface.h"
#include "flow.h"
#include "generated.h"
#include "kernel.h"
#include "leave.h"
#include "loopback.h"
#include "socket.h"
#include "source.h"
#include "sweep.h"

#define TC_PASS (-1) /* TCX_NEXT, TC_ACT_UNSPEC: the next program, or on */
#define TC_DROP 2 /* TC_ACT_SHOT */

/* interface_identity is 0 for a device, or a namespace, that is not attached. */
static __always_inline __u64 interface_identity(struct __sk_buff *skb)
{
	struct interface_key key = {
		.netns = netns_cookie(skb),
		.ifindex = skb->ifindex,
	};
	__u32 at = key.ifindex % INTERFACE_PLACES;
	struct interface_place *place = bpf_map_lookup_elem(&nf_interface_places, &at);
	__u64 *identity;

	if (place) {
		/* first: whoever gets the place meanwhile has another ifindex or namespace */
		__u64 whose = *(volatile __u64 *)&place->identity;

		barrier();
		if (whose && place->ifindex == key.ifindex && place->netns == key.netns)
			return whose;
	}
	identity = bpf_map_lookup_elem(&nf_interfaces, &key);
	return identity ? *identity : 0;
}

static __always_inline enum reason parse_device(struct __sk_buff *skb, int headerless,
						struct packet *p)
{
	__builtin_memset(p, 0, sizeof(*p)); /* of what turned out not to be ordinary, or whole */
	return headerless ? parse_network(skb, skb->protocol, 0, p) : parse_frame(skb, p);
}

/*
 * What is judged must be what leaves. Where the headers lie in pages, the sender may
 * have them mapped (vhost with zero copy): they are made the packet's own first.
 */
__attribute__((noinline)) int parse_whole(struct __sk_buff *skb, int headerless, struct packet *p)
{
	enum reason reason;
	__u32 judged;

	if (!p)
		return REASON_TRUNCATED;
	reason = parse_device(skb, headerless, p);
	judged = p->transport + judged_bytes(p);
	if (p->arp || p->protocol == IPPROTO_ICMPV6) /* what they claim is read as well */
		judged += MAX_DISCOVERY_LENGTH;
	if (judged > skb->len)
		judged = skb->len;
	if (reason || (void *)(long)skb->data + (judged & 0xffff) <= (void *)(long)skb->data_end)
		return reason;
	if (bpf_skb_pull_data(skb, judged))
		return REASON_TRUNCATED;
	return parse_device(skb, headerless, p);
}

static __always_inline int is_ordinary(struct __sk_buff *skb, int headerless, struct packet *p)
{
	const struct ethhdr *frame = (void *)(long)skb->data;

	if (headerless)
		return parse_ordinary(skb, skb->protocol, 0, p);
	return !skb->vlan_present && (void *)(frame + 1) <= (void *)(long)skb->data_end &&
	       parse_ordinary(skb, frame->h_proto, sizeof(*frame), p);
}

/* What block-all drops is parsed all the same: it is to be told of. */
static __always_inline enum reason interface_verdict(struct __sk_buff *skb, __u64 identity,
						     __u64 word, int headerless, enum reason parsed,
						     struct packet *p)
{
	if (!identity)
		return REASON_UNATTACHED;
	if (!parsed && in_dns_range(&p->dst))
		return REASON_PROTECTED;
	if (!asks_rules(word) && (parsed || !WORD_SLOT(word)))
		return silence(word);
	if (parsed)
		return parsed;
	if (!p->arp && rewrites_itself(skb, p))
		return REASON_MALFORMED;
	if (word & WORD_SOURCE && !source_holds(skb, identity, WORD_SLOT(word), headerless, p))
		return REASON_SOURCE;
	if ((asks_rules(word) || word & WORD_CONFIGURES) && configures(identity, p))
		return REASON_NONE;
	if (p->arp)
		return silence(word);
	if (WORD_MODE(word) != MODE_DISABLED && is_loopback(&p->dst))
		return REASON_LOOPBACK;
	return leaves(identity, word, p);
}

/* Only what comes in can be handed to a veth's peer; what goes out is sent there. */
static __always_inline int interface_outbound(struct __sk_buff *skb, int headerless, int ingress)
{
	__u64 identity = interface_identity(skb);
	__u64 word = word_in_force(IDENTITY_ATTACHMENT(identity));
	enum reason reason;
	struct packet p = {};
	__u32 listener = 0;

	skb->tc_index = IDENTITY_ATTACHMENT(identity); /* see interface_inbound */
	if (is_ordinary(skb, headerless, &p)) {
		int known = remembered(identity, word, &p);

		if (known >= 0 && !rewrites_itself(skb, &p))
			return settle(identity, word, known, skb->len, &p) ? TC_DROP : TC_PASS;
		reason = REASON_NONE;
	} else {
		reason = parse_whole(skb, headerless, &p);
	}
	if (identity && !reason && is_query(&p) && (intercepts(word) || is_nameserver(&p.dst)))
		reason = dns_hand_over(skb, identity,
				       (headerless ? HOOK_HEADERLESS : 0) |
					       (ingress ? HOOK_INGRESS : 0),
				       &p, &listener);
	else
		reason = interface_verdict(skb, identity, word, headerless, reason, &p);
	if (settle(identity, word, reason, skb->len, &p))
		return TC_DROP;
	if (!listener || reason)
		return TC_PASS;
	return ingress ? bpf_redirect_peer(listener, 0) : bpf_redirect(listener, 0);
}

static __always_inline int is_exempt(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;

	if (!sk)
		return 0;
	sk = bpf_sk_fullsock(sk);
	return sk && bpf_sk_storage_get(&nf_exempt, sk, NULL, 0);
}

/*
 * The host may send back what the workload has sent, to an address that a rule
 * allows and that is the workload's own: with any source it likes. The mark that
 * it got on the way in, 16 bits that the kernel carries along and that only queueing
 * disciplines have had a use for, tells it from what somebody else has sent.
 */
static __always_inline int interface_inbound(struct __sk_buff *skb, int headerless)
{
	__u64 identity = interface_identity(skb);
	__u64 word = word_in_force(IDENTITY_ATTACHMENT(identity));
	struct packet p = {};

	if (!identity || skb->tc_index == IDENTITY_ATTACHMENT(identity) || !flows_serve(word, 0))
		return TC_PASS;
	if (!is_ordinary(skb, headerless, &p) && (parse_device(skb, headerless, &p) || p.arp))
		return TC_PASS;
	flow_inbound(identity, word, &p, 0);
	return TC_PASS;
}

SEC("tc")
int nf_out_l2(struct __sk_buff *skb)
{
	return interface_outbound(skb, 0, 1);
}

SEC("tc")
int nf_out_l3(struct __sk_buff *skb)
{
	return interface_outbound(skb, 1, 1);
}

SEC("tc")
int nf_host_l2(struct __sk_buff *skb)
{
	return is_exempt(skb) ? TC_PASS : interface_outbound(skb, 0, 0);
}

SEC("tc")
int nf_host_l3(struct __sk_buff *skb)
{
	return is_exempt(skb) ? TC_PASS : interface_outbound(skb, 1, 0);
}

SEC("tc")
int nf_in_l2(struct __sk_buff *skb)
{
	return interface_inbound(skb, 0);
}

SEC("tc")
int nf_in_l3(struct __sk_buff *skb)
{
	return interface_inbound(skb, 1);
}

SEC("tc")
int nf_dns_return(struct __sk_buff *skb)
{
	__u64 flags = 0;
	__u32 ifindex = dns_lead_back(skb, netns_cookie(skb), &flags);

	return ifindex ? bpf_redirect(ifindex, flags) : TC_DROP;
}

static __always_inline enum reason cgroup_verdict(struct __sk_buff *skb, __u64 identity, __u64 word,
						  struct packet *p)
{
	int loopback = skb->ifindex == LOOPBACK_IFINDEX;
	struct protected_socket *protected;
	enum reason reason;

	if (!identity)
		return REASON_UNATTACHED;
	reason = parse_ip(skb, skb->protocol, 0, p);
	if (!reason && !p->portless && !loopback) {
		int known = remembered(identity, word, p);

		if (known >= 0)
			return known;
	}
	protected = loopback && !reason ? protected_socket(p) : NULL;
	if (protected && protected->netns == netns_cookie(skb))
		return REASON_PROTECTED;
	if (!reason && in_dns_range(&p->dst)) {
		reason = dns_packet(skb, identity, word, p);
		if (!reason) /* where nobody listens any more, somebody else may by now */
			skb->priority = dns_setting(DNS_REALM);
		return reason;
	}
	if (!reason && is_query(p) && intercepts(word))
		return REASON_DNS;
	if (!asks_rules(word) && (reason || !WORD_SLOT(word)))
		return silence(word);
	if (reason)
		return reason;
	if (loopback)
		return loopback_verdict(skb, identity, word, p);
	if (word & WORD_SOURCE && !source_holds(skb, identity, WORD_SLOT(word), 1, p))
		return REASON_SOURCE;
	if (WORD_MODE(word) != MODE_DISABLED && is_loopback(&p->dst))
		return REASON_LOOPBACK;
	return leaves(identity, word, p);
}

SEC("cgroup_skb/egress")
int nf_cg_egress(struct __sk_buff *skb)
{
	__u64 identity = *(volatile __u64 *)bpf_get_local_storage(&nf_cgroups, 0);
	__u64 word = word_in_force(IDENTITY_ATTACHMENT(identity));
	struct packet p = {};
	enum reason reason = cgroup_verdict(skb, identity, word, &p);

	return settle(identity, word, reason, skb->len, &p) ? SK_DROP_PACKET : SK_PASS_PACKET;
}

SEC("cgroup_skb/ingress")
int nf_cg_ingress(struct __sk_buff *skb)
{
	__u64 identity = *(volatile __u64 *)bpf_get_local_storage(&nf_cgroups, 0);
	__u64 word = word_in_force(IDENTITY_ATTACHMENT(identity));
	int loopback = skb->ifindex == LOOPBACK_IFINDEX;
	struct packet p = {};

	if (identity && flows_serve(word, loopback) && !parse_ip(skb, skb->protocol, 0, &p))
		flow_inbound(identity, word, &p, loopback);
	return SK_PASS_PACKET;
}

SEC("cgroup/connect4")
int nf_connect4(struct bpf_sock_addr *ctx)
{
	return early_verdict4(ctx, 0);
}

SEC("cgroup/connect6")
int nf_connect6(struct bpf_sock_addr *ctx)
{
	return early_verdict6(ctx, 0);
}

SEC("cgroup/sendmsg4")
int nf_sendmsg4(struct bpf_sock_addr *ctx)
{
	return early_verdict4(ctx, 1);
}

SEC("cgroup/sendmsg6")
int nf_sendmsg6(struct bpf_sock_addr *ctx)
{
	return early_verdict6(ctx, 1);
}

SEC("cgroup/recvmsg4")
int nf_recvmsg4(struct bpf_sock_addr *ctx)
{
	return answered4(ctx);
}

SEC("cgroup/recvmsg6")
int nf_recvmsg6(struct bpf_sock_addr *ctx)
{
	return answered6(ctx);
}

SEC("cgroup/getpeername4")
int nf_getpeername4(struct bpf_sock_addr *ctx)
{
	return answered4(ctx);
}

SEC("cgroup/getpeername6")
int nf_getpeername6(struct bpf_sock_addr *ctx)
{
	return answered6(ctx);
}

SEC("cgroup/bind4")
int nf_bind4(struct bpf_sock_addr *ctx)
{
	struct address at;

	get_address4(ctx, &at);
	return dns_binds(ctx, &at) ? SK_DROP_PACKET : SK_PASS_PACKET;
}

SEC("cgroup/bind6")
int nf_bind6(struct bpf_sock_addr *ctx)
{
	struct address at;

	get_address6(ctx, &at);
	return dns_binds(ctx, &at) ? SK_DROP_PACKET : SK_PASS_PACKET;
}

/* Run by the daemon: ends the flows, of one attachment or of all, that are over. */
SEC("syscall")
int nf_flows_end(struct flows_query *ctx)
{
	struct flows_query query = { .attachment = ctx->attachment };

	bpf_for_each_map_elem(&nf_flows, flow_visit, &query, 0);
	ctx->ended = query.ended;
	return 0;
}

SEC("syscall")
int nf_dns_flows_end(void *ctx)
{
	__u64 now = bpf_ktime_get_boot_ns();

	bpf_for_each_map_elem(&nf_dns_flows, dns_flow_visit, &now, 0);
	return 0;
}

/* Run by the daemon, with a struct dns_question for a packet. */
SEC("tc")
int nf_dns_original(struct __sk_buff *skb)
{
	struct dns_question question;

	if (bpf_skb_load_bytes(skb, 0, &question, sizeof(question)))
		return 0;
	question.server_port = 0;
	if (!dns_original(skb, &question))
		return 0;
	return !bpf_skb_store_bytes(skb, 0, &question, sizeof(question), 0);
}

/* bpf_sk_lookup and the ring buffer want a GPL-compatible licence, which the dual one is. */
char LICENSE[] SEC("license") = "Dual BSD/GPL";
