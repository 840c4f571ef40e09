/* SPDX-License-Identifier: Apache-2.0 */
/* Prints the addresses of a name, one a line, or how getaddrinfo(3) failed. */
#define _GNU_SOURCE /* EAI_NODATA */
#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#ifdef __GLIBC__
#include <nss.h>
#endif

int main(int argc, char **argv)
{
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM };
	struct addrinfo *found;
	int err;

	if (argc != 3)
		return 2;
	hints.ai_family = strcmp(argv[1], "6") == 0 ? AF_INET6 : AF_INET;
#ifdef __GLIBC__
	__nss_configure_lookup("hosts", "dns"); /* whatever the machine's nsswitch.conf says */
#endif
	err = getaddrinfo(argv[2], NULL, &hints, &found);
	if (err) {
		printf("%s\n", err == EAI_NONAME || err == EAI_NODATA ? "noname" : gai_strerror(err));
		return 0;
	}
	for (struct addrinfo *a = found; a; a = a->ai_next) {
		char text[INET6_ADDRSTRLEN];
		const void *addr = a->ai_family == AF_INET6 ?
					   (const void *)&((struct sockaddr_in6 *)a->ai_addr)->sin6_addr :
					   (const void *)&((struct sockaddr_in *)a->ai_addr)->sin_addr;

		printf("%s\n", inet_ntop(a->ai_family, addr, text, sizeof(text)));
	}
	freeaddrinfo(found);
	return 0;
}
