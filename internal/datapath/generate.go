// SPDX-License-Identifier: Apache-2.0

package datapath

//go:generate go tool -modfile=../../tools/go.mod bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel,bpfeb -go-package datapath -type limit -type attachment -type attachment_flag -type word_flag -type mode -type match -type clause_verdict -type reason -type dns_setting -type source_kind -type source -type interface_place -type ruling -type pass -type dns_flow_key -type dns_flow -type dns_question -type interface_key -type onlink_key -type prefix -type clause -type slot_content -type counters -type event -type event_bucket -type name_key -type name -type grant -type learned_key -type learned -type flow_key -type flow -type flows_query bpf ../../bpf/netfence.bpf.c -- -O2 -g -mcpu=v3 -Wall -Werror -I/usr/include/x86_64-linux-gnu -I/usr/include/aarch64-linux-gnu
