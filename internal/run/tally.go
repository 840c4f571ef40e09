// SPDX-License-Identifier: Apache-2.0

package run

import (
	"cmp"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/netfence/netfence/internal/events"
)

const (
	// maxTallied bounds what a command that asks for ever new addresses and names costs; more are only counted.
	maxTallied = 4096
	// maxLines is a summary that fits on a screen.
	maxLines = 20
)

// tally adds up what was denied.
type tally struct {
	mu      sync.Mutex
	flows   map[flowKey]*Denied
	names   map[string]*Refused
	lost    uint64
	dropped uint64 // flows seen, and lost
}

type flowKey struct {
	to       netip.AddrPort
	protocol uint8
	reason   string
}

// Denied is where packets were dropped to, or connections refused.
type Denied struct {
	Name     string `json:"name,omitempty"` // under which the address was learned last
	Address  string `json:"address"`
	Port     uint16 `json:"port"`
	Protocol string `json:"protocol"`
	Reason   string `json:"reason"`
	Count    uint64 `json:"count"`
}

// Refused is a name that was asked for.
type Refused struct {
	Name   string `json:"name"`
	Reason string `json:"reason"`
	Count  uint64 `json:"count"`
}

// Result is what --report has.
type Result struct {
	Command    []string  `json:"command"`
	ExitCode   int       `json:"exit_code"`
	Duration   seconds   `json:"duration"`
	Denied     []Denied  `json:"denied"`
	DNSRefused []Refused `json:"dns_refused"`
	// Lost are denials that were not told of: more at a time than the limit, or more kinds than are kept.
	Lost uint64 `json:"lost"`
}

// seconds are a number in JSON.
type seconds float64

func newTally() *tally {
	return &tally{flows: make(map[flowKey]*Denied), names: make(map[string]*Refused)}
}

// add is an events.Hub's subscriber, or a datapath's.
func (t *tally) add(e events.Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lost += e.Lost
	t.dropped += e.Lost
	switch {
	case e.Flow != nil:
		t.dropped++
		t.addFlow(e.Flow)
	case e.Decision != nil && !e.Decision.Allowed:
		t.addName(e.Decision)
	}
}

func (t *tally) addFlow(f *events.DeniedFlow) {
	key := flowKey{f.Destination, f.Protocol, f.Reason}
	d := t.flows[key]
	if d == nil {
		if len(t.flows) >= maxTallied {
			t.lost++
			return
		}
		d = &Denied{
			Address: f.Destination.Addr().String(), Port: f.Destination.Port(),
			Protocol: protocolName(f.Protocol), Reason: f.Reason,
		}
		t.flows[key] = d
	}
	d.Count++
	if len(f.Names) > 0 {
		d.Name = f.Names[0]
	}
}

func (t *tally) addName(d *events.DNSDecision) {
	r := t.names[d.Name]
	if r == nil {
		if len(t.names) >= maxTallied {
			t.lost++
			return
		}
		r = &Refused{Name: d.Name, Reason: d.Reason}
		t.names[d.Name] = r
	}
	r.Count++
}

func (t *tally) result() Result {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := Result{Denied: []Denied{}, DNSRefused: []Refused{}, Lost: t.lost}
	for _, d := range t.flows {
		r.Denied = append(r.Denied, *d)
	}
	slices.SortFunc(r.Denied, func(a, b Denied) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), strings.Compare(a.Address, b.Address),
			cmp.Compare(a.Port, b.Port), strings.Compare(a.Protocol, b.Protocol), strings.Compare(a.Reason, b.Reason))
	})
	for _, n := range t.names {
		r.DNSRefused = append(r.DNSRefused, *n)
	}
	slices.SortFunc(r.DNSRefused, func(a, b Refused) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), strings.Compare(a.Name, b.Name))
	})
	return r
}

// print writes the summary, nothing if nothing was denied.
func (r Result) print(w io.Writer) error {
	var lines []string
	for _, n := range r.DNSRefused {
		lines = append(lines, fmt.Sprintf("%6d × name %s", n.Count, printable(n.Name)))
	}
	for _, d := range r.Denied {
		lines = append(lines, fmt.Sprintf("%6d × %s", d.Count, d.where()))
	}
	more := len(lines) - maxLines
	if more > 0 {
		lines = lines[:maxLines]
		lines = append(lines, fmt.Sprintf("… and %d more", more))
	}
	if r.Lost > 0 {
		lines = append(lines, fmt.Sprintf("and %d packets or names that were not looked at one by one", r.Lost))
	}
	if len(lines) == 0 {
		return nil
	}
	_, err := fmt.Fprintf(w, "netfenced run: denied\n  %s\n", strings.Join(lines, "\n  "))
	return err
}

func (d Denied) where() string {
	to := d.Address
	if d.Port != 0 {
		if strings.Contains(to, ":") {
			to = "[" + to + "]"
		}
		to += ":" + strconv.Itoa(int(d.Port))
	}
	to += "/" + d.Protocol
	if d.Name != "" {
		to = printable(d.Name) + " (" + to + ")"
	}
	return to + ", " + d.Reason
}

// printable keeps what a command put into a name from being obeyed by the terminal.
func printable(s string) string {
	for _, r := range s {
		if !unicode.IsPrint(r) {
			return strconv.QuoteToASCII(s)
		}
	}
	return s
}

func protocolName(number uint8) string {
	switch number {
	case 1:
		return "icmp"
	case 6:
		return "tcp"
	case 17:
		return "udp"
	case 58:
		return "icmpv6"
	case 132:
		return "sctp"
	}
	return strconv.Itoa(int(number))
}

func inSeconds(d time.Duration) seconds { return seconds(d.Round(time.Millisecond).Seconds()) }

// seen is how many drops have been told of, or told to be lost.
func (t *tally) seen() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.dropped
}
