/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef NETFENCE_GENERATED_H
#define NETFENCE_GENERATED_H

#include "dns_types.h"
#include "types.h"

/* Types that Go is generated from and that no map names. */
const volatile struct {
	enum limit limit;
	enum attachment_flag attachment_flag;
	enum word_flag word_flag;
	enum mode mode;
	enum match match;
	enum clause_verdict clause_verdict;
	enum reason reason;
	enum dns_setting dns_setting;
	enum source_kind source_kind;
	struct dns_question dns_question;
	struct source source;
	struct prefix prefix;
	struct clause clause;
	struct event event;
} generated_types = {};

#endif
