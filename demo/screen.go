// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// color is an SGR code (ECMA-48).
type color string

const (
	bold  color = "1"
	dim   color = "2"
	red   color = "31"
	green color = "32"
	cyan  color = "36"
)

// colored: to a terminal, unless its owner does not like it (no-color.org).
var colored = func() bool {
	_, err := unix.IoctlGetTermios(int(os.Stdout.Fd()), unix.TCGETS)
	return err == nil && os.Getenv("NO_COLOR") == ""
}()

func paint(c color, text string) string {
	if !colored {
		return text
	}
	return "\x1b[" + string(c) + "m" + text + "\x1b[0m"
}

// gapped is whether the last line was empty.
var gapped = true

// line prints a line of the play, indented.
func line(text string) {
	fmt.Println("   " + text)
	gapped = false
}

// gap separates what comes from what was.
func gap() {
	if !gapped {
		fmt.Println()
	}
	gapped = true
}

// heading is at the left edge.
func heading(text string) {
	gap()
	fmt.Println(paint(bold, text))
	gapped = false
	gap()
}

// say prints text as it is.
func say(text string) {
	gap()
	for text := range strings.SplitSeq(strings.Trim(text, "\n"), "\n") {
		line(text)
	}
	gap()
}

// prompt prints a command as its user would type it, quote what it printed.
func prompt(command string) {
	gap()
	line(paint(cyan, "$ "+command))
}

func quote(text string) {
	for text := range strings.SplitSeq(strings.TrimRight(text, "\n"), "\n") {
		line("    " + paint(dim, text))
	}
	gap()
}
