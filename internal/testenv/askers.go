// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// Askers is a process with sockets of many cgroups, each of which asks again as soon as it has its answer.
type Askers struct {
	Server netip.AddrPort
	Zone   string // "fresh.example."; the names are n0 to n9 below it
	// Cgroups own the sockets in turn.
	Cgroups []string
	// Sockets are how many there are, and Outstanding how many of them wait for an answer at any time: a divisor of
	// Sockets, as each is one worker's alone.
	Sockets, Outstanding int

	in  io.WriteCloser
	out *bufio.Reader
}

// askersOrder is what the process is told to do for a while.
type askersOrder struct {
	For time.Duration // 0: until every socket has had an answer
}

// AskersResult is what came of it.
type AskersResult struct {
	Answered, Unanswered int
	First, All           time.Duration // until one socket, and each, had an answer
	Error                string        // the last one
}

// Start has the process open its sockets. It ends with the test.
func (a *Askers) Start(t TB, ns *NS) {
	t.Helper()
	text, err := json.Marshal(a)
	if err != nil {
		t.Fatalf("askers: %v", err)
	}
	cmd := askers.Command(string(text))
	if a.in, err = cmd.StdinPipe(); err != nil {
		t.Fatalf("askers: %v", err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatalf("askers: %v", err)
	}
	a.out = bufio.NewReader(out)
	Start(t, cmd, ns, nil)
	if _, err := a.out.ReadString('\n'); err != nil {
		t.Fatalf("askers: %v", err)
	}
}

// Ask has them ask for a while; 0: until each has had an answer.
func (a *Askers) Ask(t TB, d time.Duration) AskersResult {
	t.Helper()
	return a.Begin(t, d)()
}

// Begin is Ask that does not wait: the function it returns does.
func (a *Askers) Begin(t TB, d time.Duration) (end func() AskersResult) {
	t.Helper()
	if err := json.NewEncoder(a.in).Encode(askersOrder{d}); err != nil {
		t.Fatalf("askers: %v", err)
	}
	return func() (r AskersResult) {
		t.Helper()
		line, err := a.out.ReadBytes('\n')
		if err == nil {
			err = json.Unmarshal(line, &r)
		}
		if err != nil {
			t.Fatalf("askers: %v", err)
		}
		return r
	}
}

var askers = NewFunc("askers", func(args []string) error {
	var a Askers
	if err := json.Unmarshal([]byte(args[0]), &a); err != nil {
		return err
	}
	conns, err := a.open()
	if err != nil {
		return err
	}
	fmt.Println()
	orders := json.NewDecoder(os.Stdin)
	for {
		var order askersOrder
		if err := orders.Decode(&order); err != nil {
			return nil // the test has ended
		}
		if err := json.NewEncoder(os.Stdout).Encode(a.ask(conns, order)); err != nil {
			return err
		}
	}
})

// open makes each socket while the process is in the cgroup that is to own it.
func (a *Askers) open() ([]*net.UDPConn, error) {
	conns := make([]*net.UDPConn, a.Sockets)
	for i, cgroup := range a.Cgroups {
		if err := os.WriteFile(filepath.Join(cgroup, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0); err != nil {
			return nil, err
		}
		for at := i; at < len(conns); at += len(a.Cgroups) {
			conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(a.Server))
			if err != nil {
				return nil, err
			}
			conns[at] = conn
		}
	}
	return conns, nil
}

// Answers are waited for as long as resolvers do at the least; who is refused tries again sooner than they do.
const (
	askersWait  = time.Second
	askersPause = 50 * time.Millisecond
)

func (a *Askers) ask(conns []*net.UDPConn, order askersOrder) (r AskersResult) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if order.For != 0 {
		defer time.AfterFunc(order.For, cancel).Stop()
	}
	var (
		workers                       sync.WaitGroup
		answered, unanswered, waiting atomic.Int64
		mu                            sync.Mutex
	)
	waiting.Store(int64(len(conns)))
	began := time.Now()
	for worker := range a.Outstanding {
		workers.Go(func() {
			had := make(map[*net.UDPConn]bool)
			reply := make([]byte, dns.MinMsgSize)
			for n := worker; ctx.Err() == nil; n += a.Outstanding {
				conn := conns[n%len(conns)]
				if err := a.askOne(conn, uint16(n), n/len(conns), reply); err != nil {
					unanswered.Add(1)
					mu.Lock()
					r.Error = err.Error()
					mu.Unlock()
					select {
					case <-time.After(askersPause):
					case <-ctx.Done():
					}
					continue
				}
				if answered.Add(1) == 1 {
					mu.Lock()
					r.First = time.Since(began)
					mu.Unlock()
				}
				if !had[conn] {
					had[conn] = true
					if waiting.Add(-1) == 0 {
						mu.Lock()
						r.All = time.Since(began)
						mu.Unlock()
						if order.For == 0 {
							cancel()
						}
					}
				}
			}
		})
	}
	workers.Wait()
	r.Answered, r.Unanswered = int(answered.Load()), int(unanswered.Load())
	return r
}

// askOne asks once. Answers to what was asked before, and given up, are passed over.
func (a *Askers) askOne(conn *net.UDPConn, id uint16, number int, reply []byte) error {
	query := new(dns.Msg).SetQuestion(fmt.Sprintf("n%d.%s", number%10, a.Zone), dns.TypeA)
	query.Id = id
	packed, err := query.Pack()
	if err != nil {
		return err
	}
	if err := conn.SetDeadline(time.Now().Add(askersWait)); err != nil {
		return err
	}
	if _, err := conn.Write(packed); err != nil {
		return err
	}
	for {
		n, err := conn.Read(reply)
		if err != nil {
			return err
		}
		if n < 12 || reply[0] != packed[0] || reply[1] != packed[1] {
			continue
		}
		if code := int(reply[3] & 0xf); code != dns.RcodeSuccess {
			return fmt.Errorf("answer %s", dns.RcodeToString[code])
		}
		return nil
	}
}
