// SPDX-License-Identifier: Apache-2.0

// Testlog reads what `go test -json` writes, prints what `go test` would have, and fails on a skipped test that is not
// listed: a test that silently stops running guards nothing.
//
//	go test -json ./... | testlog skips.txt
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
)

const module = "github.com/netfence/netfence/"

// event is a line of `go test -json`; see `go doc test2json`.
type event struct {
	Action  string
	Package string
	Test    string
	Output  string
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: go test -json ./... | testlog skips.txt")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "testlog:", err)
		os.Exit(1)
	}
}

func run(skips string, in io.Reader, out io.Writer) error {
	text, err := os.ReadFile(skips)
	if err != nil {
		return err
	}
	return report(listed(string(text)), in, out)
}

// listed reads "package test reason" lines into "package test".
func listed(text string) map[string]bool {
	tests := map[string]bool{}
	for line := range strings.Lines(text) {
		if words := strings.Fields(line); len(words) > 2 && words[0] != "#" {
			tests[words[0]+" "+words[1]] = true
		}
	}
	return tests
}

func report(allowed map[string]bool, in io.Reader, out io.Writer) error {
	r := reporter{allowed: allowed, out: out, logs: map[string]string{}}
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadBytes('\n')
		r.line(line)
		if errors.Is(err, io.EOF) {
			return r.end()
		}
		if err != nil {
			return err
		}
	}
}

type reporter struct {
	allowed map[string]bool
	out     io.Writer
	logs    map[string]string // output of tests that have not ended, by "package test"
	failed  bool
	skipped []string // not listed, each with its output
}

func (r *reporter) line(line []byte) {
	var e event
	if json.Unmarshal(line, &e) != nil {
		fmt.Fprintf(r.out, "%s", line) // the linker writes plain text
		return
	}
	name := strings.TrimPrefix(e.Package, module) + " " + e.Test
	switch e.Action {
	case "build-output":
		fmt.Fprint(r.out, e.Output)
	case "output":
		switch {
		case e.Test != "":
			r.logs[name] += e.Output
		case e.Output != "PASS\n":
			fmt.Fprint(r.out, e.Output)
		}
	case "fail", "build-fail":
		r.failed = true
		fmt.Fprint(r.out, r.logs[name])
		delete(r.logs, name)
	case "skip":
		if e.Test != "" && !r.allowed[name] {
			r.skipped = append(r.skipped, name+"\n"+r.logs[name])
		}
		delete(r.logs, name)
	case "pass":
		delete(r.logs, name)
	}
}

func (r *reporter) end() error {
	for _, name := range slices.Sorted(maps.Keys(r.logs)) {
		r.failed = true
		fmt.Fprintf(r.out, "not ended: %s\n%s", name, r.logs[name])
	}
	for _, s := range r.skipped {
		fmt.Fprintf(r.out, "skipped and not listed: %s", s)
	}
	switch {
	case r.failed:
		return errors.New("tests failed")
	case len(r.skipped) > 0:
		return fmt.Errorf("%d tests skipped that are not listed", len(r.skipped))
	}
	return nil
}
