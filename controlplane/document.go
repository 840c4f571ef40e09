// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"runtime"
	"sync"
	"weak"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/netfence/netfence/internal/wire"
	"github.com/netfence/netfence/policy"
)

// document is a policy as it is sent. There is one for all who have the same, and it is encoded once.
type document struct {
	revision string
	body     []byte // a BulkUpdate, and a SubscribedAck as well: the two are alike
	needs    []wire.UnsupportedError
}

// Revision is how the package names a policy to daemons, and what Attachment.Revision is compared with: a hash of what is
// sent, so equal policies have equal revisions, on any server and after any restart. The error is that of a policy which
// cannot be sent at all.
func Revision(p *policy.Policy) (string, error) {
	d, err := newDocument(p)
	if err != nil {
		return "", err
	}
	return d.revision, nil
}

func newDocument(p *policy.Policy) (*document, error) {
	if err := p.Validate(policy.Limits{}); err != nil {
		return nil, err
	}
	update, needs := wire.Write(p)
	// Deterministic within one build of the library; should another one order fields otherwise, every policy is sent
	// once more, which changes nothing.
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(update)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(body)
	return &document{revision: "sha256:" + hex.EncodeToString(sum[:16]), body: body, needs: needs}, nil
}

// unsupported is what the peer would not understand of it; nil: it understands all.
func (d *document) unsupported(to wire.Peer) *wire.UnsupportedError {
	for i := range d.needs {
		if !to.Has(d.needs[i].Feature) {
			return &d.needs[i]
		}
	}
	return nil
}

// field is the document as a field of another message, encoded. Put among a message's unknown fields it is sent as it is.
func (d *document) field(number protowire.Number) []byte {
	b := make([]byte, 0, protowire.SizeTag(number)+protowire.SizeBytes(len(d.body)))
	return protowire.AppendBytes(protowire.AppendTag(b, number, protowire.BytesType), d.body)
}

// library holds the documents in use. It keeps none alive: attachments do, and policies that users hold on to.
type library struct {
	mu         sync.Mutex
	byPolicy   map[weak.Pointer[policy.Policy]]*document
	byRevision map[string]weak.Pointer[document]
}

// document of a policy: the same for the same content.
func (l *library) document(p *policy.Policy) (*document, error) {
	key := weak.Make(p)
	l.mu.Lock()
	known := l.byPolicy[key]
	l.mu.Unlock()
	if known != nil {
		return known, nil
	}
	d, err := newDocument(p)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.byPolicy == nil {
		l.byPolicy = make(map[weak.Pointer[policy.Policy]]*document)
		l.byRevision = make(map[string]weak.Pointer[document])
	}
	if same := l.byRevision[d.revision].Value(); same != nil {
		d = same
	} else {
		l.byRevision[d.revision] = weak.Make(d)
		runtime.AddCleanup(d, l.forgetDocument, d.revision)
	}
	if _, ok := l.byPolicy[key]; !ok {
		l.byPolicy[key] = d
		runtime.AddCleanup(p, l.forgetPolicy, key)
	}
	return d, nil
}

func (l *library) forgetPolicy(key weak.Pointer[policy.Policy]) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.byPolicy, key)
}

func (l *library) forgetDocument(revision string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.byRevision[revision].Value() == nil { // else it was made again meanwhile
		delete(l.byRevision, revision)
	}
}

// refusal is what an error of document's says of a policy.
func refusal(err error) Refusal {
	var invalid *policy.InvalidError
	if errors.As(err, &invalid) {
		return Refusal{Violations: []Violation{{Field: invalid.Field, Value: invalid.Value, Expected: invalid.Reason}}}
	}
	return Refusal{Violations: []Violation{{Expected: err.Error()}}}
}
