// SPDX-License-Identifier: Apache-2.0

package main

import "fmt"

const (
	names       = "BenchmarkNames "
	burst       = "BenchmarkResolveThenSend "
	many        = "BenchmarkManyNames "
	killedNames = "BenchmarkKilledNames "
	floodedName = "BenchmarkFloodedNames "
)

var nameRuns = []run{
	{"Netfence's server beside others", "BenchmarkNames", "./test/e2e", "1x", false},
	{"Resolve, then send at once", "BenchmarkResolveThenSend", "./test/e2e", "1x", false},
	{"A thousand attachments that ask", "BenchmarkManyNames", "./test/e2e", "1x", false},
	{"One asks while another floods", "BenchmarkFloodedNames", "./test/e2e", "1x", false},
	{"Killed while clients ask", "BenchmarkKilledNames", "./test/e2e", "1x", false},
}

var nameRows = []row{
	{"resolve, then send at once, interfaces and cgroups", "0 drops of ≥ 500,000",
		[]part{figure("%s of %s", number(burst+"dropped"), number(burst+"iterations"))}, nil},
	{"uncached, allowlist on, learning into the kernel", "≥ dnsdist, ≥ 3× CoreDNS",
		[]part{rate(names + "uncached:Netfence:q/s")}, beside("uncached", "dnsdist", "CoreDNS", "unbound")},
	{"cached, likewise", "≥ 0.9× unbound, ≥ 2× CoreDNS",
		[]part{rate(names + "cached:Netfence:q/s")}, beside("cached", "unbound", "CoreDNS", "dnsdist")},
	{"p99 at 8 outstanding, uncached", "≤ dnsdist",
		[]part{took(names + "uncached, 8 outstanding:Netfence:p99")},
		[]part{latency("dnsdist"), latency("unbound"), latency("CoreDNS")}},
	intercepted("interface"),
	intercepted("cgroup"),
	{"1,000 attachments ask at once, 10,000 idle", "same q/s ± 10%, daemon ≤ 4 KiB each",
		[]part{rate(many + "beside idle:many-q/s"), figure("%s KiB", number(many+"idle-KiB"))},
		[]part{figure("one asks %s", rate(many+"beside idle:one-q/s")),
			figure("without the idle %s", rate(many+"alone:many-q/s")), figure("one %s", rate(many+"alone:one-q/s"))}},
	{"one asks while another floods: p50, p99", "–",
		[]part{figure("%s, %s", took(floodedName+"beside a flood:p50"), took(floodedName+"beside a flood:p99"))},
		[]part{figure("without the flood %s, %s", took(floodedName+"alone:p50"), took(floodedName+"alone:p99"))}},
	{"daemon killed while 200 clients ask, 10,000 attachments", "0 queries to a foreign resolver, back within 1 s",
		[]part{figure("%s to a foreign resolver; first answer %s, all clients %s after start",
			number(killedNames+"foreign"), took(killedNames+"first"), took(killedNames+"all"))},
		[]part{figure("ready %s", took(killedNames+"ready"))}},
}

// beside are what others reach of what Netfence does, in the same rounds.
func beside(load string, others ...string) []part {
	var parts []part
	for _, other := range others {
		known := ratio(names + load + ":" + other + ":ratio")
		parts = append(parts, func(f figures) (string, bool) {
			if s, ok := known(f); ok {
				return fmt.Sprintf("%s %s", other, s), true
			}
			return other + " was not there", true
		})
	}
	return parts
}

func latency(of string) part {
	return figure(of+" %s", took(names+"uncached, 8 outstanding:"+of+":p99"))
}

// intercepted compares with Netfence's server, asked without interception.
func intercepted(by string) row {
	through := ":through a" + map[string]string{"interface": "n"}[by] + " " + by
	return row{"added by interception, " + by + ": q/s uncached, cached; p50", "≥ 0.9×; ≤ 1.05×",
		[]part{figure("%s, %s", ratio(names+"uncached"+through+":ratio"), ratio(names+"cached"+through+":ratio")),
			figure("%s", took(names+"uncached, 8 outstanding"+through+":p50"))},
		[]part{figure("asked directly %s", took(names+"uncached, 8 outstanding:Netfence:p50"))}}
}
