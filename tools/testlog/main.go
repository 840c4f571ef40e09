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
	logs := map[string][]string{} // output of tests that have not ended, by package and test
	var failed bool
	var skipped []string
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) != nil {
				fmt.Fprintf(out, "%s", line) // go vet and the linker write plain text
				continue
			}
			name := strings.TrimPrefix(e.Package, module) + " " + e.Test
			switch {
			case e.Action == "build-output", e.Action == "output" && e.Test == "" && e.Output != "PASS\n":
				fmt.Fprint(out, e.Output)
			case e.Action == "output":
				logs[name] = append(logs[name], e.Output)
			case e.Action == "fail" || e.Action == "build-fail":
				failed = true
				fmt.Fprint(out, strings.Join(logs[name], ""))
				delete(logs, name)
			case e.Action == "skip" && e.Test != "" && !allowed[name]:
				skipped = append(skipped, name+"\n"+strings.Join(logs[name], ""))
				delete(logs, name)
			case e.Action == "pass" || e.Action == "skip":
				delete(logs, name)
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(logs)) {
		fmt.Fprintf(out, "not ended: %s\n%s", name, strings.Join(logs[name], ""))
		failed = true
	}
	for _, s := range skipped {
		fmt.Fprintf(out, "skipped and not listed: %s", s)
	}
	switch {
	case failed:
		return errors.New("tests failed")
	case len(skipped) > 0:
		return fmt.Errorf("%d tests skipped that are not listed", len(skipped))
	}
	return nil
}
