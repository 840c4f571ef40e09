// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"
)

func TestReport(t *testing.T) {
	f := make(figures)
	for _, line := range []string{
		"BenchmarkPacket-2 \t 1 \t 40.00 empty_program \t 12.0 repeated_destination,_10_rules:over \t 13.0 repeated_destination,_1,000_rules:over \t 1400 repeated_destination,_100,000_rules:over",
		"BenchmarkFlood-2 1 100 veth,_Netfence,_one_destination:over 750 veth,_nftables,_one_destination:over",
		"BenchmarkAttach-2 1 2400000 cgroup:first-p50 15.25 cgroup:kernel-KiB 4 cgroup:daemon-KiB",
		"BenchmarkKilledUnderLoad-2 1 300000 allowed 0 lost 320000 forbidden 0 passed",
	} {
		if !f.take(line) {
			t.Errorf("not taken: %s", line)
		}
	}
	for _, line := range []string{"BenchmarkPacket", "per packet  median", "ok  \tgithub.com/netfence/netfence/policy\t1s"} {
		if f.take(line) {
			t.Errorf("taken: %s", line)
		}
	}
	var out strings.Builder
	if err := f.report(rows, &out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"12 ns / 13 ns / 1400 ns", "an empty program 40 ns", "100 ns; 7.5× less", "15.2, 4 KiB",
		"0 of 320000 passed; 0 of 300000 lost", "replace 10,000 CIDRs",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, &out)
		}
	}
	// Half a figure is none.
	if strings.Contains(out.String(), "2.4 ms") {
		t.Errorf("p50 without p99 in\n%s", &out)
	}
}

func TestReportOfNames(t *testing.T) {
	f := make(figures)
	for _, line := range []string{
		"BenchmarkNames-2 1 50000 uncached:Netfence:q/s 0.8 uncached:dnsdist:ratio 0.95 cached:through_a_cgroup:ratio",
		"BenchmarkResolveThenSend-2 1 500000 iterations 0 dropped",
	} {
		if !f.take(line) {
			t.Errorf("not taken: %s", line)
		}
	}
	var out strings.Builder
	if err := f.report(nameRows, &out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"50.0k/s", "dnsdist 0.80×", "unbound was not there", "0 of 500000"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, &out)
		}
	}
}
