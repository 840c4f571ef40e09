// SPDX-License-Identifier: Apache-2.0

package main

// row is a line of the last table: a figure, what is aimed at, and what others
// take that could be measured in the same run.
type row struct {
	what, reach      string
	measured, beside []part
}

const (
	packet  = "BenchmarkPacket "
	first   = "BenchmarkFirst "
	flood   = "BenchmarkFlood "
	control = "BenchmarkControl "
	attach  = "BenchmarkAttach "
	killed  = "BenchmarkKilledUnderLoad "
	fleet   = "BenchmarkFleet "
	onehost = "BenchmarkRealDaemon "

	learned = "learned, beside 1,000 rules: its grant, its name, its flow noted"
)

var rows = []row{
	{"a packet, repeated destination, 10 / 1,000 / 100,000 rules", "≤ 20 ns, flat",
		[]part{figure("%s / %s / %s", took(packet+"repeated destination, 10 rules:over"),
			took(packet+"repeated destination, 1,000 rules:over"), took(packet+"repeated destination, 100,000 rules:over"))},
		emptyProgram(packet)},
	{"first packet to a destination: learned", "≤ 50 ns",
		[]part{took(first + "the same, its flow known:over"), figure("and its flow noted %s", took(first+learned+":over"))},
		emptyProgram(first)},
	{"first packet to a destination: CIDR, 1,000 rules", "≤ 120 ns",
		[]part{took(first + "allowed by one of 1,000 rules:over")}, emptyProgram(first)},
	{"denied and counted", "≤ 60 ns",
		[]part{took(packet + "denied and counted, over the rate of events, 1,000 rules:over"),
			figure("first to a destination %s", took(first+"denied and counted, 1,000 rules:over"))},
		emptyProgram(packet)},
	flooded("flood through a veth, 1,000 rules", "one destination"),
	flooded("the same", "1,000 destinations"),
	{"flood from a cgroup, one / 1,000 destinations", "–",
		[]part{figure("%s / %s", took(flood+"cgroup, Netfence, one destination:over"), took(flood+"cgroup, Netfence, 1,000 destinations:over"))},
		[]part{figure("an empty program %s / %s", took(flood+"cgroup, empty program, one destination:over"),
			took(flood+"cgroup, empty program, 1,000 destinations:over"))}},
	attached("attach a cgroup, p50 / p99", "≤ 1 / 5 ms", "cgroup"),
	attached("attach an interface, p50 / p99", "≤ 12 / 40 ms", "interface"),
	memory("10,000 cgroups: kernel, daemon, each", "cgroup"),
	memory("1,000 interfaces: kernel, daemon, each", "interface"),
	{"replace 10,000 CIDRs", "≤ 40 ms", []part{took(control + "replace 10,000 rules")}, nil},
	{"add a learned address", "≤ 5 µs",
		[]part{took(control + "learn an address of a known name"), figure("with its name %s", took(control+"learn a name and its address"))}, nil},
	{"kill -9 and start ×20 under load", "0 forbidden passed, 0 allowed lost, of ≥ 300,000",
		[]part{figure("%s of %s passed", number(killed+"passed"), number(killed+"forbidden")),
			figure("%s of %s lost", number(killed+"lost"), number(killed+"allowed"))}, nil},
	{"a control plane on one core, 2,000 daemons × 100 attachments: memory of each", "≤ 150 KiB", []part{figure("%s KiB", number(fleet+"KiB/host"))}, nil},
	{"a change for all 200,000, one policy", "≤ 2 s", []part{took(fleet + "shared"), figure("its core %s", took(fleet+"shared-core"))}, nil},
	{"a change for all 200,000, one policy each", "≤ 15 s",
		[]part{took(fleet + "distinct"), figure("its core %s", took(fleet+"distinct-core")), figure("at most %s MiB", number(fleet+"distinct-MiB"))}, nil},
	{"all reconnect at once, nothing changed", "no storm", []part{took(fleet + "all reconnect, nothing changed")}, nil},
	{"a change until it is in force, one real daemon, p50 / p99", "≤ 5 / 20 ms", []part{figure("%s / %s", took(onehost+"change-p50"), took(onehost+"change-p99"))}, nil},
	{"a real daemon with 10,000 attachments reconnects: nothing changed", "≤ 1 s", []part{took(onehost + "reconnect-same")}, nil},
	{"the same, everything changed", "≤ 15 s",
		[]part{figure("to one policy %s", took(onehost+"reconnect-changed")), figure("to one each %s", took(onehost+"reconnect-distinct"))}, nil},
	{"attach, its policy asked for over loopback, p50", "≤ 3 ms more than with the policy in the request",
		[]part{took(onehost + "attach-p50")}, []part{figure("in the request %s", took(onehost+"attach-own-p50"))}},
}

func emptyProgram(benchmark string) []part {
	return []part{figure("an empty program %s, not included", took(benchmark+"empty program"))}
}

func flooded(what, to string) row {
	netfence, nftables := flood+"veth, Netfence, "+to+":over", flood+"veth, nftables, "+to+":over"
	return row{what + ", " + to, "≥ 5× less than nftables",
		[]part{took(netfence), figure("%s less", times(nftables, netfence))},
		[]part{figure("nftables %s", took(nftables)), figure("an empty program %s", took(flood+"veth, empty program, "+to+":over"))}}
}

func attached(what, reach, target string) row {
	return row{what, reach,
		[]part{figure("%s / %s", took(attach+target+":first-p50"), took(attach+target+":first-p99")),
			figure("after the others %s / %s", took(attach+target+":last-p50"), took(attach+target+":last-p99"))}, nil}
}

func memory(what, target string) row {
	return row{what, "≤ 4, ≤ 4 KiB", []part{figure("%s, %s KiB", number(attach+target+":kernel-KiB"), number(attach+target+":daemon-KiB"))}, nil}
}
