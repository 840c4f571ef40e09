// SPDX-License-Identifier: Apache-2.0

// Package order is what tests and their virtual machines tell each other, by the
// machine's serial line.
package order

import (
	"net/netip"

	"github.com/netfence/netfence/internal/testenv"
)

// Path is where the guest finds its Order.
const Path = "/order.json"

// Order is carried out in the order of its fields. Then the guest powers off.
type Order struct {
	Modules []string // paths of kernel modules, each after those that it needs
	Network *Network
	Steps   []Step
	// Obey has the guest read an Ask a line until there are no more.
	Obey bool
}

// Network is how eth0 is configured.
type Network struct {
	Addrs    []netip.Prefix
	Gateways []netip.Addr
}

// Step is a program to run.
type Step struct {
	Name    string
	Command []string
	Env     []string
}

// Ask is one thing to send. Exactly one field is set.
type Ask struct {
	Probe *testenv.Probe `json:",omitempty"`
	Query *Query         `json:",omitempty"`
	Frame []byte         `json:",omitempty"` // out of eth0, as it is
	Off   bool           `json:",omitempty"` // nothing: power off
}

// Query asks for a name.
type Query struct {
	Server netip.AddrPort
	Name   string // absolute
	Type   uint16
	TCP    bool
}

// Answer is what became of an Ask.
type Answer struct {
	Outcome testenv.Outcome
	Rcode   int // -1: no answer
	Addrs   []netip.Addr
	Err     string // why it could not be sent at all
}

// Mark begins the lines of the guest that are for the host to read.
const Mark = "=== guest "

// What follows it.
const (
	Up       = Mark + "is up "     // the kernel's release
	Begin    = Mark + "begins "    // a step's name
	End      = Mark + "ended "     // exit code, step's name
	Answered = Mark + "answers "   // an Answer
	Broken   = Mark + "could not " // what
)
