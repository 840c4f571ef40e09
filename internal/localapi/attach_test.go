// SPDX-License-Identifier: Apache-2.0

package localapi

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	netfencev1 "github.com/netfence/netfence/api/netfence/v1"
	"github.com/netfence/netfence/internal/state"
	"github.com/netfence/netfence/policy"
)

func TestAttach(t *testing.T) {
	e := newEnv(t, state.Limits{})
	e.subscriber.set(func(s *fakeSubscriber) { s.asked, s.hold = make(chan string, 1), make(chan struct{}) })
	type answer struct {
		*netfencev1.AttachResponse
		error
	}
	answered := make(chan answer, 1)
	go func() {
		r, err := e.client.Attach(t.Context(), attachInterface("eth0", ""))
		answered <- answer{r, err}
	}()
	// While the control plane is asked, the kernel holds a closed filter, and the attachment is listed.
	id := <-e.subscriber.asked
	if mode, ok := e.kernel.mode(id); !ok || mode != policy.ModeBlockAll {
		t.Errorf("before the first policy: mode %v, in the kernel %v", mode, ok)
	}
	if a, _, err := e.store.Get(id); err != nil || !a.Pending || !a.Held {
		t.Errorf("before the first policy: %+v, %v", a, err)
	}
	close(e.subscriber.hold)
	got := <-answered
	if got.error != nil || got.GetId() != id || !got.GetCreated() || got.GetDnsAddress() != "" {
		t.Fatalf("got %v, %v", got.AttachResponse, got.error)
	}
	if mode, _ := e.kernel.mode(id); mode != policy.ModeAllowlist {
		t.Errorf("after: mode %v", mode)
	}
	if a, _, err := e.store.Get(id); err != nil || a.Pending || a.Held {
		t.Errorf("after: %+v, %v", a, err)
	}
}

func TestAttachWithoutWaiting(t *testing.T) {
	e := newEnv(t, state.Limits{})
	e.subscriber.set(func(s *fakeSubscriber) { s.policy = nil })
	id := e.attach(t, "eth0", "")
	if mode, ok := e.kernel.mode(id); !ok || mode != policy.ModeBlockAll {
		t.Errorf("mode %v, in the kernel %v", mode, ok)
	}
	if a, _, err := e.store.Get(id); err != nil || !a.Pending || a.Held {
		t.Errorf("%+v, %v", a, err)
	}
}

// Who has misspelt the metadata would otherwise learn from a workload that reaches nothing.
func TestAttachWarnsThatNothingPasses(t *testing.T) {
	e := newEnv(t, state.Limits{})
	for mode, want := range map[policy.Mode]int{policy.ModeBlockAll: 1, policy.ModeAllowlist: 0} {
		e.subscriber.set(func(s *fakeSubscriber) { s.policy = &policy.Policy{Mode: mode} })
		r, err := e.client.Attach(t.Context(), attachInterface("eth0", mode.String()))
		if err != nil {
			t.Fatal(err)
		}
		if got := r.GetWarnings(); len(got) != want || want > 0 && !strings.HasPrefix(got[0], "its policy is block-all") {
			t.Errorf("%v: warnings %q", mode, got)
		}
		if _, err := e.client.Detach(t.Context(), &netfencev1.DetachRequest{Id: r.GetId()}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAttachAgain(t *testing.T) {
	e := newEnv(t, state.Limits{})
	id := e.attach(t, "eth0", "job-7")

	r, err := e.client.Attach(t.Context(), attachInterface("eth0", "job-7"))
	if err != nil || r.GetId() != id || r.GetCreated() {
		t.Errorf("same key, same target: %v, %v", r, err)
	}
	_, err = e.client.Attach(t.Context(), attachInterface("eth1", "job-7"))
	wantStatus(t, err, codes.FailedPrecondition,
		"attach interface eth1: key job-7 is in use by attachment "+id+" of interface eth0 (use another key, or detach that one)")
	egress := attachInterface("eth0", "job-7")
	egress.Direction = netfencev1.Direction_DIRECTION_EGRESS
	_, err = e.client.Attach(t.Context(), egress)
	if status.Code(err) != codes.FailedPrecondition {
		t.Errorf("same key, other direction: %v", err)
	}
	for _, key := range []string{"", "job-8"} {
		_, err = e.client.Attach(t.Context(), attachInterface("eth0", key))
		wantStatus(t, err, codes.AlreadyExists,
			"attach interface eth0: taken by attachment "+id+" with key job-7 (detach that one first)")
	}
	if n := e.store.Len(); n != 1 {
		t.Errorf("%d attachments", n)
	}
}

// A retry may come while the first call is still under way: it must not be given what may yet be rolled back.
func TestAttachAgainWhileUnderWay(t *testing.T) {
	for name, fail := range map[string]error{"first succeeds": nil, "first fails": errors.New("no")} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t, state.Limits{})
			hold := make(chan struct{})
			e.subscriber.set(func(s *fakeSubscriber) { s.asked, s.hold, s.err = make(chan string, 2), hold, fail })
			first, second := make(chan error, 1), make(chan *netfencev1.AttachResponse, 1)
			go func() {
				_, err := e.client.Attach(t.Context(), attachInterface("eth0", "job-7"))
				first <- err
			}()
			id := <-e.subscriber.asked
			go func() {
				r, err := e.client.Attach(t.Context(), attachInterface("eth0", "job-7"))
				if err != nil {
					t.Error(err)
				}
				second <- r
			}()
			// Another caller is not made to wait.
			_, err := e.client.Attach(t.Context(), attachInterface("eth0", "job-8"))
			if status.Code(err) != codes.AlreadyExists {
				t.Errorf("another key: %v", err)
			}
			select {
			case r := <-second:
				t.Fatalf("answered before the first: %v", r)
			default:
			}
			// The second finds a control plane that acknowledges; the first has its answer in hand.
			e.subscriber.set(func(s *fakeSubscriber) { s.err, s.hold = nil, nil })
			close(hold)
			if err := <-first; (err != nil) != (fail != nil) {
				t.Errorf("first: %v", err)
			}
			if r := <-second; r.GetCreated() != (fail != nil) || (r.GetId() == id) != (fail == nil) {
				t.Errorf("second: %v; the first was %s", r, id)
			}
			if n := e.store.Len(); n != 1 {
				t.Errorf("%d attachments", n)
			}
		})
	}
}

func TestAttachRollsBack(t *testing.T) {
	for _, test := range []struct {
		name  string
		setup func(*env)
		code  codes.Code
		text  string
	}{
		{
			"refused", func(e *env) {
				e.subscriber.err = &SubscribeError{SubscribeRefused, errors.New("policy agents.yaml: mode is missing")}
			},
			codes.FailedPrecondition, "attach interface eth0: policy agents.yaml: mode is missing",
		},
		{
			"unreachable", func(e *env) {
				e.subscriber.err = &SubscribeError{SubscribeUnavailable, fmt.Errorf("lost: %w", status.Error(codes.Internal, "bug"))}
			},
			codes.Unavailable, "attach interface eth0: lost: rpc error: code = Internal desc = bug",
		},
		{
			"timeout", func(e *env) { e.subscriber.err = &SubscribeError{SubscribeTimeout, errors.New("no answer")} },
			codes.DeadlineExceeded, "attach interface eth0: no answer",
		},
		{
			"refused by the kernel", func(e *env) { e.kernel.set(errKernel, false) },
			codes.FailedPrecondition, "attach interface eth0: revision 1 refused by the kernel: no room left in the kernel",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := newEnv(t, state.Limits{})
			test.setup(e)
			_, err := e.client.Attach(t.Context(), attachInterface("eth0", "job-7"))
			wantStatus(t, err, test.code, test.text)
			e.nothingLeft(t)
			if gone := e.store.Gone(); len(gone) != 1 || gone[0].Reason != state.ReasonError || gone[0].Text == "" {
				t.Errorf("the control plane is not told: %+v", gone)
			}
			e.subscriber.set(func(s *fakeSubscriber) { s.err = nil })
			e.kernel.set(nil, false)
			e.attach(t, "eth0", "job-7") // key and target are free again
		})
	}
}

func TestAttachCancelled(t *testing.T) {
	e := newEnv(t, state.Limits{})
	e.subscriber.set(func(s *fakeSubscriber) { s.asked, s.hold = make(chan string, 1), make(chan struct{}) })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := e.client.Attach(ctx, attachInterface("eth0", ""))
		done <- err
	}()
	id := <-e.subscriber.asked
	cancel()
	if err := <-done; status.Code(err) != codes.Canceled {
		t.Errorf("got %v", err)
	}
	if err := e.store.Wait(t.Context(), id, state.Removal); err != nil {
		t.Fatal(err)
	}
	e.nothingLeft(t)
}

// Stop cancels what is under way, waits for its roll-back, and only then returns.
func TestStopRollsBack(t *testing.T) {
	e := newEnv(t, state.Limits{})
	e.subscriber.set(func(s *fakeSubscriber) { s.asked, s.hold = make(chan string, 1), make(chan struct{}) })
	done := make(chan error, 1)
	go func() {
		_, err := e.client.Attach(t.Context(), attachInterface("eth0", ""))
		done <- err
	}()
	<-e.subscriber.asked
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	e.server.Stop(ctx)
	e.nothingLeft(t)
	if err := <-done; err == nil {
		t.Error("the attach succeeded")
	}
}

func TestAttachKernelStuck(t *testing.T) {
	e := newEnv(t, state.Limits{})
	e.stuck()
	_, err := e.client.Attach(t.Context(), attachInterface("eth0", ""))
	if st := status.Convert(err); st.Code() != codes.DeadlineExceeded || !strings.Contains(st.Message(), "the kernel did not follow within 200ms") {
		t.Errorf("got %v", err)
	}
	// Nobody has its id, and it is on its way out as soon as the kernel moves.
	if list := e.store.List(); len(list) != 1 || list[0].Removing != state.ReasonError {
		t.Errorf("left in the store: %+v", list)
	}
}

func TestAttachTargetVanishes(t *testing.T) {
	e := newEnv(t, state.Limits{})
	e.subscriber.set(func(s *fakeSubscriber) { s.asked, s.hold = make(chan string, 1), make(chan struct{}) })
	done := make(chan error, 1)
	go func() {
		_, err := e.client.Attach(t.Context(), attachInterface("eth0", ""))
		done <- err
	}()
	if _, err := e.store.Remove(<-e.subscriber.asked, state.ReasonRemoved, "gone"); err != nil {
		t.Fatal(err)
	}
	close(e.subscriber.hold)
	wantStatus(t, <-done, codes.Aborted, "attach interface eth0: the target vanished, or somebody detached it, meanwhile")
	e.nothingLeft(t)
}

func TestAttachRefuses(t *testing.T) {
	e := newEnv(t, state.Limits{Attachments: 1, MetadataBytes: 10})
	unknown := attachInterface("eth1", "")
	unknown.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 199, protowire.VarintType), 1))
	with := func(change func(*netfencev1.AttachRequest)) *netfencev1.AttachRequest {
		r := attachInterface("eth1", "")
		change(r)
		return r
	}
	e.attach(t, "eth0", "")
	for _, test := range []struct {
		request *netfencev1.AttachRequest
		code    codes.Code
		text    string
	}{
		{&netfencev1.AttachRequest{}, codes.InvalidArgument, "attach: no target (name an interface, a cgroup path or a pid)"},
		{attachInterface("tap9", ""), codes.NotFound, "attach: interface tap9: no such interface"},
		{
			with(func(r *netfencev1.AttachRequest) { r.Netns = "/run/netns/a" }), codes.FailedPrecondition,
			"attach: interface eth1: in network namespace /run/netns/a, not the daemon's (attach its host-side end veth1)",
		},
		{
			with(func(r *netfencev1.AttachRequest) {
				r.Target = &netfencev1.AttachRequest_CgroupPath{CgroupPath: "/sys/fs/cgroup/memory/a"}
			}), codes.InvalidArgument,
			"attach: cgroup /sys/fs/cgroup/memory/a: is of cgroup v1 (the v2 mount is /sys/fs/cgroup/unified)",
		},
		{
			with(func(r *netfencev1.AttachRequest) {
				r.Target, r.Direction = &netfencev1.AttachRequest_Pid{Pid: 1}, netfencev1.Direction_DIRECTION_EGRESS
			}), codes.InvalidArgument, "attach: direction and netns are for interfaces (leave them out)",
		},
		{with(func(r *netfencev1.AttachRequest) { r.Direction = 7 }), codes.InvalidArgument, "attach: unknown direction 7"},
		{
			with(func(r *netfencev1.AttachRequest) { r.InheritLearnedFrom = "a" }), codes.NotFound,
			"attach: inherit_learned_from: no attachment a (see `netfenced list`)",
		},
		{unknown, codes.Unimplemented, "attach: the request has fields that this daemon does not know (upgrade it)"},
		{
			with(func(r *netfencev1.AttachRequest) { r.Metadata = map[string]string{"": "a"} }), codes.InvalidArgument,
			"attach: metadata: a name is empty",
		},
		{
			with(func(r *netfencev1.AttachRequest) { r.Metadata = map[string]string{"a\n": "a"} }), codes.InvalidArgument,
			`attach: metadata: name "a\n" has control characters`,
		},
		{
			with(func(r *netfencev1.AttachRequest) { r.Metadata = map[string]string{"a": "0123456789"} }), codes.InvalidArgument,
			"attach interface eth1: bytes of key and metadata: 11, at most 10 (limits.metadata_bytes)",
		},
		{attachInterface("eth1", ""), codes.ResourceExhausted, "attach interface eth1: attachments: 2, at most 1 (limits.attachments)"},
	} {
		_, err := e.client.Attach(t.Context(), test.request)
		wantStatus(t, err, test.code, test.text)
	}
	if n := e.store.Len(); n != 1 {
		t.Errorf("%d attachments", n)
	}
}

func TestAttachDryRun(t *testing.T) {
	e := newEnv(t, state.Limits{})
	request := attachInterface("eth0", "job-7")
	request.DryRun = true
	r, err := e.client.Attach(t.Context(), request)
	if err != nil || r.GetId() != "" || !r.GetCreated() {
		t.Errorf("got %v, %v", r, err)
	}
	e.nothingLeft(t)
	id := e.attach(t, "eth0", "job-7")
	if r, err = e.client.Attach(t.Context(), request); err != nil || r.GetId() != id || r.GetCreated() {
		t.Errorf("existing: %v, %v", r, err)
	}
}
