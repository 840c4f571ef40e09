// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"
)

func TestReport(t *testing.T) {
	const pkg = `"Package":"github.com/netfence/netfence/internal/target"`
	for _, tt := range []struct{ name, skips, in, want, err string }{
		{"pass", "", `{"Action":"output",` + pkg + `,"Test":"TestA","Output":"noise\n"}
{"Action":"pass",` + pkg + `,"Test":"TestA"}
{"Action":"output",` + pkg + `,"Output":"PASS\n"}
{"Action":"output",` + pkg + `,"Output":"ok  \tinternal/target\t0.1s\n"}
{"Action":"pass",` + pkg + `}`, "ok  \tinternal/target\t0.1s\n", ""},
		{"fail", "", `{"Action":"output",` + pkg + `,"Test":"TestA","Output":"why\n"}
{"Action":"fail",` + pkg + `,"Test":"TestA"}`, "why\n", "tests failed"},
		{"build", "", `{"Action":"build-output","ImportPath":"x","Output":"x.go:1: no\n"}
{"Action":"build-fail","ImportPath":"x"}`, "x.go:1: no\n", "tests failed"},
		{"cut off", "", `{"Action":"output",` + pkg + `,"Test":"TestA","Output":"why\n"}`,
			"not ended: internal/target TestA\nwhy\n", "tests failed"},
		{"skip", "", `{"Action":"output",` + pkg + `,"Test":"TestA","Output":"no tun\n"}
{"Action":"skip",` + pkg + `,"Test":"TestA"}`,
			"skipped and not listed: internal/target TestA\nno tun\n", "1 tests skipped that are not listed"},
		{"listed skip", "# comment here and there\ninternal/target TestA no tun device here\n",
			`{"Action":"skip",` + pkg + `,"Test":"TestA"}`, "", ""},
		{"skip listed without a reason", "internal/target TestA\n", `{"Action":"skip",` + pkg + `,"Test":"TestA"}`,
			"skipped and not listed: internal/target TestA\n", "1 tests skipped that are not listed"},
		{"no test files", "", `{"Action":"skip",` + pkg + `}`, "", ""},
		{"plain text", "", "# linker\n", "# linker\n", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out strings.Builder
			err := report(listed(tt.skips), strings.NewReader(tt.in), &out)
			if got := out.String(); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if (err == nil) != (tt.err == "") || err != nil && err.Error() != tt.err {
				t.Errorf("got %v, want %q", err, tt.err)
			}
		})
	}
}
