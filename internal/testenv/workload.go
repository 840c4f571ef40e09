// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"time"
)

// Workload is a process that sends what it is told to from where it was started:
// a network namespace, a cgroup, or both.
type Workload struct {
	cmd *exec.Cmd

	mu  sync.Mutex // one order at a time
	in  *json.Encoder
	out *json.Decoder
}

// order is what a Workload is told, result its answer.
type order struct {
	Op    string
	Probe Probe         `json:",omitzero"`
	Conn  int           `json:",omitempty"`
	Wait  time.Duration `json:",omitempty"`
	Addr  string        `json:",omitempty"`
}

type result struct {
	Outcome Outcome
	Conn    int
	OK      bool
	Err     string
}

var workload = NewFunc("workload", func([]string) error {
	return obey(os.Stdin, os.Stdout)
})

// StartWorkload starts the process; ns and cg may be nil. It ends with the test.
func StartWorkload(t TB, ns *NS, cg *Cgroup) *Workload {
	t.Helper()
	cmd := workload.Command()
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatalf("start workload: %v", err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatalf("start workload: %v", err)
	}
	Start(t, cmd, ns, cg)
	return &Workload{cmd: cmd, in: json.NewEncoder(stdin), out: json.NewDecoder(bufio.NewReader(stdout))}
}

// PID returns the process id.
func (w *Workload) PID() int { return w.cmd.Process.Pid }

func (w *Workload) tell(t TB, o order) result {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.in.Encode(o); err != nil {
		t.Fatalf("workload %s: %v", o.Op, err)
	}
	var r result
	if err := w.out.Decode(&r); err != nil {
		t.Fatalf("workload %s: %v", o.Op, err)
	}
	if r.Err != "" {
		t.Fatalf("workload %s: %s", o.Op, r.Err)
	}
	return r
}

// Probe has the process send p.
func (w *Workload) Probe(t TB, p Probe) Outcome {
	t.Helper()
	return w.tell(t, order{Op: "probe", Probe: p}).Outcome
}

// Serve has the process run an EchoServer on the port.
func (w *Workload) Serve(t TB, port uint16) {
	t.Helper()
	w.tell(t, order{Op: "serve", Addr: fmt.Sprintf(":%d", port)})
}

// Flood has the process send UDP packets to the address 8,000 times a second, or Slow
// times fewer, by unconnected sends, errors notwithstanding, until stop is called. stop
// returns what the kernel took, and what it did not.
func (w *Workload) Flood(t TB, to netip.AddrPort) (stop func() Outcome) {
	t.Helper()
	id := w.tell(t, order{Op: "flood", Probe: Probe{Kind: UDPSendto, To: to}}).Conn
	return func() Outcome {
		return w.tell(t, order{Op: "unflood", Conn: id}).Outcome
	}
}

// Conn is a TCP connection of a Workload to an EchoServer.
type Conn struct {
	w  *Workload
	id int
}

// Connect has the process open a connection, and fails the test if it cannot.
func (w *Workload) Connect(t TB, to netip.AddrPort) *Conn {
	t.Helper()
	return &Conn{w, w.tell(t, order{Op: "connect", Addr: to.String()}).Conn}
}

// Echoes reports whether what is written to the connection comes back within wait.
func (c *Conn) Echoes(t TB, wait time.Duration) bool {
	t.Helper()
	return c.w.tell(t, order{Op: "echo", Conn: c.id, Wait: wait}).OK
}

// worker is the process's side.
type worker struct {
	conns  map[int]net.Conn
	floods map[int]*flood
}

func obey(in io.Reader, out io.Writer) error {
	orders, results := json.NewDecoder(in), json.NewEncoder(out)
	w := worker{conns: map[int]net.Conn{}, floods: map[int]*flood{}}
	for {
		var o order
		if err := orders.Decode(&o); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		r, err := w.carryOut(o)
		if err != nil {
			r.Err = err.Error()
		}
		if err := results.Encode(r); err != nil {
			return err
		}
	}
}

func (w *worker) carryOut(o order) (result, error) {
	switch o.Op {
	case "probe":
		out, err := Send(o.Probe)
		return result{Outcome: out}, err
	case "serve":
		_, err := serveEcho(o.Addr)
		return result{}, err
	case "connect":
		conn, err := net.DialTimeout("tcp", o.Addr, Patience)
		if err != nil {
			return result{}, err
		}
		id := len(w.conns) + 1
		w.conns[id] = conn
		return result{Conn: id}, nil
	case "echo":
		ok, err := echoes(w.conns[o.Conn], o.Wait)
		return result{OK: ok}, err
	case "flood":
		f, err := startFlood(o.Probe)
		if err != nil {
			return result{}, err
		}
		id := len(w.floods) + 1
		w.floods[id] = f
		return result{Conn: id}, nil
	case "unflood":
		return result{Outcome: w.floods[o.Conn].end()}, nil
	}
	return result{}, fmt.Errorf("unknown order %q", o.Op)
}

// echoes writes and reads until what was written last came back; what an earlier,
// failed call wrote may come before it.
func echoes(conn net.Conn, wait time.Duration) (bool, error) {
	token := stamp(0)
	if err := conn.SetDeadline(time.Now().Add(wait)); err != nil {
		return false, err
	}
	if _, err := conn.Write(token); err != nil {
		return false, nil //nolint:nilerr // the answer, not a failure
	}
	got := make([]byte, len(token))
	for string(got) != string(token) {
		if _, err := io.ReadFull(conn, got); err != nil {
			return false, nil //nolint:nilerr // likewise
		}
	}
	return true, nil
}

// A flood is what an Observer can count beside a busy machine's other tests: it fails
// rather than lose a packet.
const floodBurst = 8

// floodPace is the time from burst to burst.
var floodPace = time.Millisecond * Slow

type flood struct {
	stop atomic.Bool
	done chan Outcome
}

func startFlood(p Probe) (*flood, error) {
	s, err := openSender(p)
	if err != nil {
		return nil, err
	}
	f := &flood{done: make(chan Outcome, 1)}
	go func() {
		pace := time.NewTicker(floodPace)
		defer pace.Stop()
		for !f.stop.Load() {
			for range floodBurst {
				s.send()
			}
			<-pace.C
		}
		f.done <- s.out
	}()
	return f, nil
}

func (f *flood) end() Outcome {
	f.stop.Store(true)
	return <-f.done
}
