// SPDX-License-Identifier: Apache-2.0

package run

import (
	"cmp"
	"errors"
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
	// maxTrouble is how often it is told that the fence was tampered with.
	maxTrouble = 100
	// maxLines is a summary that fits on a screen.
	maxLines = 20
)

// tally adds up what was denied, or would have been but for audit.
type tally struct {
	mu      sync.Mutex
	flows   map[flowKey]*Denied
	names   map[string]*Refused
	audited map[string]*Refused // answered for audit's sake
	failed  map[string]*Refused // allowed, and not resolved
	solved  map[string]bool     // names that were resolved
	trouble []string            // what happened to the fence itself
	lost    uint64
	dropped uint64 // flows seen, and lost
}

type flowKey struct {
	to       netip.AddrPort
	protocol uint8
	reason   string
	passed   bool // for audit's sake
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
	Audit      bool      `json:"audit"` // of the policy
	Denied     []Denied  `json:"denied"`
	DNSRefused []Refused `json:"dns_refused"`
	// WouldDeny and DNSWouldRefuse are what passed because the policy was in audit.
	WouldDeny      []Denied  `json:"would_deny"`
	DNSWouldRefuse []Refused `json:"dns_would_refuse"`
	// DNSFailed are names that were allowed and could not be resolved, or only to addresses that are guarded.
	DNSFailed []Refused `json:"dns_failed"`
	// Incidents are what happened to the fence itself: that it was taken away and is back.
	Incidents []string `json:"incidents"`
	// Lost are denials that were not told of: more at a time than the limit, or more kinds than are kept.
	Lost uint64 `json:"lost"`
}

// seconds are a number in JSON.
type seconds float64

func newTally() *tally {
	return &tally{
		flows: make(map[flowKey]*Denied), names: make(map[string]*Refused), audited: make(map[string]*Refused),
		failed: make(map[string]*Refused), solved: make(map[string]bool),
	}
}

// add is an events.Hub's subscriber, or a datapath's.
func (t *tally) add(e events.Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lost += e.Lost
	t.dropped += e.Lost
	switch {
	case e.Incident != nil:
		if len(t.trouble) < maxTrouble {
			t.trouble = append(t.trouble, e.Incident.Kind+": "+e.Incident.Message)
		}
	case e.Flow != nil:
		t.dropped++
		t.addFlow(e.Flow)
	case e.Decision != nil && e.Decision.WouldDeny:
		t.addName(t.audited, e.Decision.Name, e.Decision.Reason)
	case e.Decision != nil && !e.Decision.Allowed:
		t.addName(t.names, e.Decision.Name, e.Decision.Reason)
	case e.Decision != nil && e.Decision.Trouble() != "":
		t.addName(t.failed, e.Decision.Name, e.Decision.Trouble())
		if r := t.failed[e.Decision.Name]; r != nil && e.Decision.Type == "A" {
			r.Reason = e.Decision.Trouble() // some upstreams fail whatever is of IPv6
		}
	// In a denylist nothing is learned.
	case e.Decision != nil && (len(e.Decision.Learned) > 0 || e.Decision.Type == "A") && len(t.solved) < maxTallied:
		t.solved[e.Decision.Name] = true
	}
}

func (t *tally) addFlow(f *events.DeniedFlow) {
	key := flowKey{f.Destination, f.Protocol, f.Reason, f.WouldDeny}
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

func (t *tally) addName(to map[string]*Refused, name, reason string) {
	r := to[name]
	if r == nil {
		if len(to) >= maxTallied {
			t.lost++
			return
		}
		r = &Refused{Name: name, Reason: reason}
		to[name] = r
	}
	r.Count++
}

func (t *tally) result() Result {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := Result{
		Denied: []Denied{}, DNSRefused: []Refused{}, WouldDeny: []Denied{}, DNSWouldRefuse: []Refused{}, DNSFailed: []Refused{}, Lost: t.lost,
		Incidents: append([]string{}, t.trouble...),
	}
	for key, d := range t.flows {
		if key.passed {
			r.WouldDeny = append(r.WouldDeny, *d)
		} else {
			r.Denied = append(r.Denied, *d)
		}
	}
	for _, list := range [][]Denied{r.Denied, r.WouldDeny} {
		slices.SortFunc(list, func(a, b Denied) int {
			return cmp.Or(cmp.Compare(b.Count, a.Count), strings.Compare(a.Address, b.Address),
				cmp.Compare(a.Port, b.Port), strings.Compare(a.Protocol, b.Protocol), strings.Compare(a.Reason, b.Reason))
		})
	}
	for _, n := range t.names {
		r.DNSRefused = append(r.DNSRefused, *n)
	}
	for _, n := range t.audited {
		r.DNSWouldRefuse = append(r.DNSWouldRefuse, *n)
	}
	for _, n := range t.failed {
		if !t.solved[n.Name] { // of the other family there may be none
			r.DNSFailed = append(r.DNSFailed, *n)
		}
	}
	for _, list := range [][]Refused{r.DNSRefused, r.DNSWouldRefuse, r.DNSFailed} {
		slices.SortFunc(list, func(a, b Refused) int {
			return cmp.Or(cmp.Compare(b.Count, a.Count), strings.Compare(a.Name, b.Name))
		})
	}
	return r
}

// print writes the summary, nothing if nothing was denied and every allowed name was resolved.
func (r Result) print(w io.Writer) error {
	denied, audited := denials(r.DNSRefused, r.Denied), denials(r.DNSWouldRefuse, r.WouldDeny)
	if r.Lost > 0 {
		lost := fmt.Sprintf("and %d packets or names that were not looked at one by one", r.Lost)
		if r.Audit {
			audited = append(audited, lost)
		} else {
			denied = append(denied, lost)
		}
	}
	var failed []string
	for _, n := range r.DNSFailed {
		failed = append(failed, fmt.Sprintf("%6d × name %s, %s", n.Count, printable(n.Name), printable(n.Reason)))
	}
	return errors.Join(section(w, "the fence itself", onScreen(slices.Clone(r.Incidents))), section(w, "denied", denied), section(w, "would be denied", audited),
		section(w, "allowed, but not resolved", onScreen(failed)))
}

func denials(names []Refused, flows []Denied) []string {
	var lines []string
	for _, n := range names {
		lines = append(lines, fmt.Sprintf("%6d × %s", n.Count, n.what()))
	}
	for _, d := range flows {
		lines = append(lines, fmt.Sprintf("%6d × %s", d.Count, d.where()))
	}
	return onScreen(lines)
}

func onScreen(lines []string) []string {
	if more := len(lines) - maxLines; more > 0 {
		return append(lines[:maxLines], fmt.Sprintf("… and %d more", more))
	}
	return lines
}

func section(w io.Writer, title string, lines []string) error {
	if len(lines) == 0 {
		return nil
	}
	_, err := fmt.Fprintf(w, "netfenced run: %s\n  %s\n", title, strings.Join(lines, "\n  "))
	return err
}

// what leaves out the reason that is meant where none is given.
func (r Refused) what() string {
	text := "name " + printable(r.Name)
	if r.Reason != "no rule allows "+r.Name {
		text += ", " + printable(r.Reason)
	}
	return text
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
