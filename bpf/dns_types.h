/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Of what C and Go agree on, what is for the interception of queries; see types.h. */
#ifndef NETFENCE_DNS_TYPES_H
#define NETFENCE_DNS_TYPES_H

#include "types.h"

/* Keys of nf_dns: where queries go. What is 0 is not there, and closed. */
enum dns_setting {
	DNS_NETNS, /* cookie of the namespace whose cgroups' sockets are listened to */
	DNS_PORT, /* of the listeners on lo, host order */
	DNS_IFINDEX, /* of the veth to the listeners for interfaces */
	DNS_REALM, /* skb->priority of queries to the listeners on lo, by which they know theirs */
	DNS_SETTINGS,
};

/* Whom a socket asks, and who has put a DNS address in that place. */
struct dns_server {
	struct address address;
	__u64 identity;
	__u16 port; /* host order */
	__u16 listener; /* the port put in its place */
	__u32 pad;
};

struct dns_servers {
	struct dns_server slot[DNS_SERVERS];
	__u32 used; /* ever */
	__u32 pad;
};

/*
 * What the daemon asks about a query that came to it at a DNS address, in the place of
 * a packet: which server it was for. Ports are in host order.
 */
struct dns_question {
	__u8 header[16]; /* the kernel takes the first 14 bytes for an Ethernet header */
	__u64 identity; /* whose the query is */
	struct address client;
	struct address asked; /* the DNS address */
	struct address server; /* out */
	__s32 netns; /* of the client: its id in the daemon's; -1: the daemon's own */
	__u16 client_port;
	__u16 listener;
	__u16 server_port; /* out; 0: it is not known */
	__u8 protocol;
	__u8 pad[5];
};

/* A place for one flow of queries: any of the ways of the set that its hash gives. */
struct dns_flow_key {
	__u32 attachment;
	__u16 set;
	__u16 way;
};

/* The way back for answers to an interface. */
struct dns_flow {
	__u64 deadline; /* bpf_ktime_get_boot_ns() */
	struct address client;
	struct address server;
	__u32 incarnation;
	__u16 client_port; /* host order */
	__u8 protocol;
	__u8 pad;
	__u8 macs[12]; /* of the query's frame: destination, source */
	__u32 pad2;
};

#endif
