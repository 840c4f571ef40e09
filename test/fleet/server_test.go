// SPDX-License-Identifier: Apache-2.0

// Package fleet_test measures package controlplane: as one process on one core with a fleet of daemons that only speak the
// protocol, and with a real daemon.
package fleet_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"

	"golang.org/x/sys/unix"

	"github.com/netfence/netfence/controlplane"
	"github.com/netfence/netfence/internal/testenv"
	"github.com/netfence/netfence/policy"
	"github.com/netfence/netfence/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

// plane is a control plane as a process of its own on one core. It is told on stdin what to change, a line of JSON each,
// and answers on stdout when every daemon has it.
var plane = testenv.NewFunc("fleet-plane", func([]string) error { return servePlane(os.Stdin, os.Stdout) })

// order is a change for every attachment: to another policy that all share, to one for each, or to nothing else than it is.
type order struct {
	Change string
}

// answer says what came of it. The first has no more than the address.
type answer struct {
	Address string
	Took    time.Duration
	CPU     time.Duration // of the process
	Outcome controlplane.Outcome
	Daemons int
	RSS     int // KiB, anonymous memory, garbage returned
	Peak    int // KiB, since the last answer
}

// decider gives the policies of a generation.
type decider struct {
	shared     atomic.Pointer[policy.Policy]
	generation atomic.Uint32
	distinct   atomic.Bool
}

func (d *decider) next(distinct bool) {
	n := d.generation.Add(1)
	d.distinct.Store(distinct)
	d.shared.Store(rules(n, 0))
}

func (d *decider) policy(_ context.Context, a controlplane.Attachment) (*policy.Policy, error) {
	if !d.distinct.Load() {
		return d.shared.Load(), nil
	}
	h := fnv.New32a()
	h.Write([]byte(a.ID)) // never fails (hash.Hash)
	return rules(d.generation.Load(), h.Sum32()), nil
}

// rules are ten rules, and two names.
func rules(generation, salt uint32) *policy.Policy {
	p := &policy.Policy{
		Mode: policy.ModeAllowlist,
		DNS: policy.DNS{Mode: policy.DNSAllowlist, Allow: []policy.DomainRule{
			{Domain: "pypi.org", Ports: []policy.Ports{{First: 443, Last: 443}}}, {Domain: "*.pythonhosted.org"},
		}},
	}
	for i := range uint32(8) {
		addr := netip.AddrFrom4([4]byte{10, byte(i), byte(generation >> 8), byte(generation)})
		p.Allow = append(p.Allow, policy.Rule{Prefix: netip.PrefixFrom(addr, 32)})
	}
	for _, part := range []uint32{salt >> 16, salt & 0xffff} {
		addr := netip.AddrFrom4([4]byte{11, byte(len(p.Allow)), byte(part >> 8), byte(part)})
		p.Allow = append(p.Allow, policy.Rule{Prefix: netip.PrefixFrom(addr, 32), Ports: []policy.Ports{{First: 443, Last: 443, Protocol: policy.TCP}}})
	}
	return p
}

func servePlane(in io.Reader, out io.Writer) error {
	runtime.GOMAXPROCS(1)
	var decide decider
	decide.next(false)
	plane, err := controlplane.New(controlplane.Options{
		Policy: decide.policy, Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})),
	})
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := grpc.NewServer(controlplane.ServerOptions()...)
	plane.Register(server)
	go func() { _ = server.Serve(listener) }() // ends with the process
	answers := json.NewEncoder(out)
	if err := answers.Encode(answer{Address: listener.Addr().String()}); err != nil {
		return err
	}
	for orders := json.NewDecoder(in); ; {
		var o order
		if err := orders.Decode(&o); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		switch o.Change {
		case "shared", "distinct":
			decide.next(o.Change == "distinct")
		case "":
		default:
			return fmt.Errorf("no such change: %s", o.Change)
		}
		start, cpu := time.Now(), processorTime()
		outcome, err := plane.Wait(context.Background(), plane.Refresh(controlplane.Selector{}))
		if err != nil {
			return err
		}
		a := answer{Took: time.Since(start), CPU: processorTime() - cpu, Outcome: outcome, Daemons: len(plane.Daemons())}
		a.Outcome.Listed = nil
		if a.RSS, a.Peak, err = memory(); err != nil {
			return err
		}
		if err := answers.Encode(a); err != nil {
			return err
		}
	}
}

// processorTime is what the process has used.
func processorTime() time.Duration {
	var used unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &used); err != nil {
		panic(err) // never fails for oneself
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}
