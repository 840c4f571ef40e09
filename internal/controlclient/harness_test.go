// SPDX-License-Identifier: Apache-2.0

package controlclient

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/netfence/netfence/internal/state"
	"github.com/netfence/netfence/internal/target"
	"github.com/netfence/netfence/policy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// kernel stands for reconciler and kernel: it puts in force whatever the store desires, at once. So these
// tests show what the client does with the answers, not that any packet is judged.
type kernel struct {
	store  *state.Store
	refuse func(state.Desired) error // why something is refused for good; nil: nothing is
	gate   chan struct{}             // its one token is taken for each step
}

func (k *kernel) run(ctx context.Context) error {
	for {
		select {
		case <-k.store.Dirty():
		case <-ctx.Done():
			return nil
		}
		for _, id := range k.store.TakeDirty() {
			select {
			case <-k.gate:
			case <-ctx.Done():
				return nil
			}
			err := k.step(id)
			k.gate <- struct{}{}
			if err != nil {
				return err
			}
		}
	}
}

func (k *kernel) step(id string) error {
	d, err := k.store.Desired(id)
	switch {
	case errors.Is(err, state.ErrNotFound):
		return nil
	case err != nil:
		return err
	case d.Removing:
		return k.store.Removed(d)
	}
	if k.refuse != nil {
		if err := k.refuse(d); err != nil {
			_, err = k.store.Refused(d, err)
			return err
		}
	}
	return k.store.InForce(d)
}

// pause lets nothing come into force until the returned function is called.
func (k *kernel) pause() (resume func()) {
	<-k.gate
	return func() { k.gate <- struct{}{} }
}

// harness is a client with a store and a control plane, in a bubble of synctest: the clock is fake, and
// moves only when everything waits.
type harness struct {
	*plane
	t       *testing.T
	store   *state.Store
	kernel  *kernel
	client  *Client
	stop    func() // ends Run
	ifindex int
}

// bubble runs one test on a fake clock.
func bubble(t *testing.T, test func(*harness), edit ...func(*Options)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		h := newHarness(t, edit...)
		h.start()
		test(h)
	})
}

func newHarness(t *testing.T, edit ...func(*Options)) *harness {
	t.Helper()
	h := &harness{t: t, stop: func() {}}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	var err error
	if h.store, err = state.Open(filepath.Join(t.TempDir(), "state.db"), "boot", state.Options{Log: log}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.store.Close(); err != nil {
			t.Error(err)
		}
	})
	h.kernel = &kernel{store: h.store, gate: make(chan struct{}, 1)}
	h.kernel.gate <- struct{}{}
	h.plane = newPlane(t)
	opts := Options{
		Dial: h.dial, Addresses: []string{"plane:1"}, Store: h.store, DaemonID: "daemon", InstanceID: "instance", Hostname: "host",
		Metadata: map[string]string{"zone": "a"}, AckTimeout: 5 * time.Second, Log: log,
	}
	for _, e := range edit {
		e(&opts)
	}
	if h.client, err = New(opts); err != nil {
		t.Fatal(err)
	}
	return h
}

// start runs client and kernel until the test ends, or the client until stop.
func (h *harness) start() {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := h.client.Run(ctx); err != nil {
			h.t.Errorf("run: %v", err)
		}
	})
	h.stop = func() { cancel(); running.Wait() }
	kernelCtx, kernelCancel := context.WithCancel(context.Background())
	var kernelRunning sync.WaitGroup
	kernelRunning.Go(func() {
		if err := h.kernel.run(kernelCtx); err != nil {
			h.t.Errorf("kernel: %v", err)
		}
	})
	h.t.Cleanup(func() {
		h.stop()
		kernelCancel()
		kernelRunning.Wait()
	})
}

// create adds an attachment. The client does not hear of it from here.
func (h *harness) create(a state.Attachment) {
	h.t.Helper()
	h.ifindex++
	a.Target = target.Target{Type: target.Interface, Name: "veth" + a.ID, Ifindex: h.ifindex, LinkKind: "veth", Direction: target.Ingress}
	if _, _, err := h.store.Create(a); err != nil {
		h.t.Fatal(err)
	}
}

// live adds an attachment that has a policy of that revision, in force.
func (h *harness) live(id, revision string, p *policy.Policy) {
	h.t.Helper()
	h.create(state.Attachment{ID: id, Policy: p, PolicyRevision: revision})
	h.settled(id)
}

// pending adds one that a local caller holds, as Attach does.
func (h *harness) pending(id string) {
	h.t.Helper()
	h.create(state.Attachment{ID: id, Pending: true, Held: true})
}

// settled waits until what is desired of id is in force.
func (h *harness) settled(id string) {
	h.t.Helper()
	a, _, err := h.store.Get(id)
	if err != nil {
		h.t.Fatal(err)
	}
	if err := h.store.Wait(h.t.Context(), id, a.Revision); err != nil {
		h.t.Fatal(err)
	}
}

// subscribe calls Subscribe and gives its error later. As the local API does, it removes what failed.
func (h *harness) subscribe(id string) <-chan error {
	done := make(chan error, 1)
	go func() {
		err := h.client.Subscribe(context.Background(), id)
		if err != nil {
			if _, removing := h.store.Remove(id, state.ReasonError, err.Error()); removing != nil {
				err = fmt.Errorf("%w; remove: %w", err, removing)
			}
		}
		done <- err
	}()
	return done
}

// inForce gives the policy that the kernel holds for id.
func (h *harness) inForce(id string) *policy.Policy {
	h.t.Helper()
	_, status, err := h.store.Get(id)
	if err != nil {
		h.t.Fatal(err)
	}
	return status.InForce
}

// blocked tells that done has nothing yet, when everything waits.
func blocked(t *testing.T, done <-chan error) {
	t.Helper()
	synctest.Wait()
	select {
	case err := <-done:
		t.Fatalf("returned already: %v", err)
	default:
	}
}
