// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"bufio"
	"encoding/json"
	"slices"
	"sync"
	"time"

	"github.com/netfence/netfence/internal/testenv"
)

// Event is a line of `netfenced events --follow -o json`.
type Event struct {
	ID         string `json:"id"`
	DeniedFlow *struct {
		Address    string   `json:"address"`
		Port       uint32   `json:"port"`
		IPProtocol uint32   `json:"ip_protocol"`
		Reason     string   `json:"reason"`
		Names      []string `json:"names"`
		Rule       string   `json:"rule"`
		WouldDeny  bool     `json:"would_deny"`
	} `json:"denied_flow"`
	DNSDecision *struct {
		Domain    string   `json:"domain"`
		QueryType string   `json:"query_type"`
		Allowed   bool     `json:"allowed"`
		Reason    string   `json:"reason"`
		Learned   []string `json:"learned"`
		WouldDeny bool     `json:"would_deny"`
	} `json:"dns_decision"`
	Incident *struct {
		Kind    string `json:"kind"`
		Message string `json:"message"`
	} `json:"incident"`
	Lost uint64 `json:"lost"`
}

// Events is what a `netfenced events --follow` has printed so far.
type Events struct {
	mu     sync.Mutex
	events []Event
}

// Follow starts one; it ends with the test. It sees what happens from some time after this call.
func (d *Daemon) Follow(t testenv.TB, args ...string) *Events {
	t.Helper()
	cmd := d.Command(append([]string{"events", "--follow", "-o", "json"}, args...)...)
	cmd.Stderr = &d.log
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatalf("netfenced events: %v", err)
	}
	testenv.Start(t, cmd, d.NS, nil)
	e, ended := &Events{}, make(chan struct{})
	go func() {
		defer close(ended)
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			var event Event
			if err := json.Unmarshal(lines.Bytes(), &event); err != nil {
				t.Errorf("netfenced events: %v\n%s", err, lines.Text())
				continue
			}
			e.mu.Lock()
			e.events = append(e.events, event)
			e.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended // before testenv waits for the process, which closes the pipe
	})
	return e
}

// All returns a copy.
func (e *Events) All() []Event {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.events)
}

// Provoke calls provoke until an event matches.
func (e *Events) Provoke(t testenv.TB, what string, provoke func(), match func(Event) bool) {
	t.Helper()
	again := time.Time{}
	testenv.Eventually(t, what, func() bool {
		if now := time.Now(); now.After(again) {
			provoke()
			again = now.Add(200 * time.Millisecond)
		}
		return slices.ContainsFunc(e.All(), match)
	})
}
