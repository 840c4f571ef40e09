// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/netfence/netfence/internal/folder"
)

const (
	// etcdTimeout is what etcd has for an answer. It elects a leader within about 2 s.
	etcdTimeout = 5 * time.Second
	retryMin    = 100 * time.Millisecond
	retryMax    = 3 * time.Second
)

// verifyEvery is how often what the watch told is compared with what is there, so that a watch that says nothing, or a
// lost etcd, does not go unnoticed. Tests of the watch alone have more.
var verifyEvery = 5 * time.Second

// errAgain has the list read again at once: nothing is wrong with etcd.
var errAgain = errors.New("read again")

// etcd holds policies as keys below a prefix: the name of a file is what follows it, its revision is the key's. What it
// knows is what a majority of the members agreed on: it never reads what a member that lost the others may still say.
type etcd struct {
	dial   *etcdDialer
	prefix string
	log    *slog.Logger

	mu     sync.Mutex
	values map[string]value // by name; nil: never read
	lost   error            // why the values may be out of date
}

type value struct {
	data     []byte
	revision int64
}

func openEtcd(c *Config, log *slog.Logger) (*etcd, error) {
	dial, err := newEtcdDialer(c, log)
	if err != nil {
		return nil, err
	}
	return &etcd{dial: dial, prefix: c.Policies.Prefix, log: log, lost: errors.New("etcd: not read yet")}, nil
}

// Names is of what was last known. It fails as long as nothing ever was.
func (e *etcd) Names() ([]string, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.values == nil {
		return nil, e.lost
	}
	return slices.Sorted(maps.Keys(e.values)), nil
}

func (e *etcd) Read(name string) ([]byte, string, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	v, ok := e.values[name]
	if !ok {
		return nil, "", fs.ErrNotExist
	}
	return v.data, text(v.revision), nil
}

func text(revision int64) string { return strconv.FormatInt(revision, 10) }

func (e *etcd) err() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.lost
}

func (e *etcd) run(ctx context.Context, source *folder.Source) {
	defer e.dial.drop()
	wait := retryMin
	for {
		begun := time.Now()
		err := e.dial.connect(ctx)
		if err == nil {
			err = e.follow(ctx, source)
		}
		if ctx.Err() != nil {
			return
		}
		if err != nil && !errors.Is(err, errAgain) {
			e.dial.logout()
		}
		if errors.Is(err, errAgain) {
			continue
		}
		if time.Since(begun) > verifyEvery {
			wait = retryMin
		}
		e.mu.Lock()
		first := e.lost == nil || e.values == nil && wait == retryMin
		e.lost = fmt.Errorf("etcd: %v", err)
		e.mu.Unlock()
		if first {
			e.log.Error("etcd is out of reach; policies stay as they were last known", "err", err)
		}
		source.Load() // for what to say as long as nothing was ever read
		timer := time.NewTimer(wait/2 + rand.N(wait))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
		wait = min(2*wait, retryMax)
	}
}

// follow reads everything, and then what changes, until something is wrong.
func (e *etcd) follow(ctx context.Context, source *folder.Source) error {
	var opening sync.WaitGroup
	defer opening.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	client, err := e.dial.client()
	if err != nil {
		return err
	}
	listed, err := e.list(ctx)
	if err != nil {
		return err
	}
	values := make(map[string]value, len(listed.Kvs))
	for _, kv := range listed.Kvs {
		e.note(values, kv)
	}
	e.mu.Lock()
	again := e.lost != nil
	e.values, e.lost = values, nil
	e.mu.Unlock()
	if again {
		e.log.Info("etcd is followed", "policies", len(values), "revision", listed.Header.Revision)
	}
	source.Load()

	// Watch returns when the watch stands, which may take as long as etcd is away. A member that lost the others ends it
	// rather than say nothing.
	opened := make(chan clientv3.WatchChan, 1)
	opening.Go(func() {
		opened <- client.Watch(clientv3.WithRequireLeader(ctx), e.prefix, clientv3.WithPrefix(), clientv3.WithRev(listed.Header.Revision+1))
	})
	var changes clientv3.WatchChan
	verify := time.NewTicker(verifyEvery)
	defer verify.Stop()
	for {
		select {
		case changes = <-opened:
		case changed, ok := <-changes:
			switch {
			case !ok:
				return errors.New("the watch ended")
			case errors.Is(changed.Err(), rpctypes.ErrCompacted):
				e.log.Info("etcd forgot what was to be read next; all is read again", "compacted", changed.CompactRevision)
				return errAgain
			case changed.Err() != nil:
				return changed.Err()
			}
			e.apply(changed.Events)
			source.Load()
		case <-verify.C:
			if err := e.verify(ctx); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// list is linearizable: no answer without a majority.
func (e *etcd) list(ctx context.Context, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, etcdTimeout)
	defer cancel()
	client, err := e.dial.client()
	if err != nil {
		return nil, err
	}
	return client.Get(ctx, e.prefix, append(opts, clientv3.WithPrefix())...)
}

// note takes a key over, if it is a policy file's.
func (e *etcd) note(values map[string]value, kv *mvccpb.KeyValue) {
	name := strings.TrimPrefix(string(kv.Key), e.prefix)
	if folder.IsName(name) && !strings.Contains(name, "/") {
		values[name] = value{kv.Value, kv.ModRevision}
	}
}

func (e *etcd) apply(events []*clientv3.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, event := range events {
		if event.Type == clientv3.EventTypeDelete {
			delete(e.values, strings.TrimPrefix(string(event.Kv.Key), e.prefix))
		} else {
			e.note(e.values, event.Kv)
		}
	}
}

// verify compares what is known with what is there. In a stream of changes the two differ without anything being wrong;
// then all is read once more than needed.
func (e *etcd) verify(ctx context.Context) error {
	listed, err := e.list(ctx, clientv3.WithKeysOnly())
	if err != nil {
		return err
	}
	there := make(map[string]value, len(listed.Kvs))
	for _, kv := range listed.Kvs {
		e.note(there, kv)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if !maps.EqualFunc(there, e.values, func(a, b value) bool { return a.revision == b.revision }) {
		return errAgain
	}
	return nil
}

func (e *etcd) fetch(ctx context.Context, name string) ([]byte, string, error) {
	ctx, cancel := context.WithTimeout(ctx, etcdTimeout)
	defer cancel()
	client, err := e.dial.client()
	if err != nil {
		return nil, "", err
	}
	got, err := client.Get(ctx, e.prefix+name)
	if err != nil {
		return nil, "", fmt.Errorf("etcd: %v", err)
	}
	if len(got.Kvs) == 0 {
		return nil, "", fs.ErrNotExist
	}
	return got.Kvs[0].Value, text(got.Kvs[0].ModRevision), nil
}

func (e *etcd) put(ctx context.Context, name string, data []byte, expected condition) (old, revision string, err error) {
	done, err := e.change(ctx, name, clientv3.OpPut(e.prefix+name, string(data), clientv3.WithPrevKV()), expected)
	if err != nil {
		return "", "", err
	}
	if before := done.Responses[0].GetResponsePut().PrevKv; before != nil {
		old = text(before.ModRevision)
	}
	return old, text(done.Header.Revision), nil
}

func (e *etcd) delete(ctx context.Context, name string, expected condition) (string, error) {
	done, err := e.change(ctx, name, clientv3.OpDelete(e.prefix+name, clientv3.WithPrevKV()), expected)
	if err != nil {
		return "", err
	}
	return text(done.Responses[0].GetResponseDeleteRange().PrevKvs[0].ModRevision), nil
}

// change does op if what is there is as expected, both in one step.
func (e *etcd) change(ctx context.Context, name string, op clientv3.Op, expected condition) (*clientv3.TxnResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, etcdTimeout)
	defer cancel()
	client, err := e.dial.client()
	if err != nil {
		return nil, err
	}
	key := e.prefix + name
	compare := clientv3.Compare(clientv3.CreateRevision(key), ">", 0)
	switch {
	case expected.absent:
		compare = clientv3.Compare(clientv3.CreateRevision(key), "=", 0)
	case expected.revision != "":
		revision, err := strconv.ParseInt(expected.revision, 10, 64)
		if err != nil || revision <= 0 {
			revision = -1 // which no key is at
		}
		compare = clientv3.Compare(clientv3.ModRevision(key), "=", revision)
	}
	done, err := client.Txn(ctx).If(compare).Then(op).Else(clientv3.OpGet(key, clientv3.WithKeysOnly())).Commit()
	if err != nil {
		return nil, fmt.Errorf("etcd: %v", err)
	}
	if !done.Succeeded {
		conflict := &conflictError{}
		if found := done.Responses[0].GetResponseRange().Kvs; len(found) > 0 {
			conflict.revision = text(found[0].ModRevision)
		}
		return nil, conflict
	}
	return done, nil
}
