// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"bufio"
	"encoding/json"
	"iter"
	"net/http"
	"strings"
	"time"

	"github.com/netfence/netfence/controlplane"
)

// daemonRecord is one host.
type daemonRecord struct {
	ID          string            `json:"id"`
	Hostname    string            `json:"hostname"`
	Metadata    map[string]string `json:"metadata,omitempty"`
	Address     string            `json:"address"`
	Connected   bool              `json:"connected"`
	Since       time.Time         `json:"since"`
	Published   bool              `json:"published"`
	Features    []string          `json:"features,omitempty"`
	Attachments int               `json:"attachments"`
	Waiting     int               `json:"waiting"`
	Error       string            `json:"error,omitempty"`      // what ended its stream
	LastError   string            `json:"last_error,omitempty"` // what ended the one before, in its words
}

// attachmentRecord is one filtered target.
type attachmentRecord struct {
	ID                string            `json:"id"`
	DaemonID          string            `json:"daemon_id"`
	Hostname          string            `json:"hostname"`
	Target            string            `json:"target"`
	Type              string            `json:"type"`
	Metadata          map[string]string `json:"metadata,omitempty"`
	DNSAddress        string            `json:"dns_address,omitempty"`
	Policy            string            `json:"policy"` // that decides for it now
	Status            string            `json:"status"` // of the last decision
	Revision          string            `json:"revision,omitempty"`
	Error             string            `json:"error,omitempty"`
	PacketsAllowed    uint64            `json:"packets_allowed"`
	PacketsBlocked    uint64            `json:"packets_blocked"`
	DNSQueriesAllowed uint64            `json:"dns_queries_allowed"`
	DNSQueriesBlocked uint64            `json:"dns_queries_blocked"`
}

// refusalRecord is a decision that did not come into force, and still is the decision.
type refusalRecord struct {
	ID       string `json:"id"` // of the attachment
	DaemonID string `json:"daemon_id"`
	Target   string `json:"target"`
	Policy   string `json:"policy"`
	InForce  string `json:"in_force,omitempty"` // revision of what is, instead
	Error    string `json:"error"`
}

func (a *api) listDaemons(w http.ResponseWriter, _ *http.Request, _ string) error {
	stream(w, "daemons", func(yield func(any) bool) {
		for _, d := range a.plane.Daemons() {
			r := daemonRecord{
				ID: d.ID, Hostname: d.Hostname, Metadata: d.Metadata, Address: d.Address, Connected: d.Connected,
				Since: d.Since.UTC(), Published: d.Published, Features: d.Features, Attachments: d.Attachments,
				Waiting: d.Waiting, LastError: d.LastError,
			}
			if d.Err != nil {
				r.Error = d.Err.Error()
			}
			if !yield(r) {
				return
			}
		}
	})
	return nil
}

func (a *api) listAttachments(w http.ResponseWriter, r *http.Request, _ string) error {
	selector, err := selectorOf(r)
	if err != nil {
		return err
	}
	stream(w, "attachments", func(yield func(any) bool) {
		for at := range a.plane.Attachments(selector) {
			record := attachmentRecord{
				ID: at.ID, DaemonID: at.DaemonID, Hostname: at.Host, Target: at.Target, Type: at.Type.String(),
				Metadata: at.Metadata, DNSAddress: at.DNSAddress, Policy: a.source.Decides(at.Metadata),
				Status: at.Status.String(), Revision: at.Revision, Error: at.Error,
				PacketsAllowed: at.Stats.PacketsAllowed, PacketsBlocked: at.Stats.PacketsBlocked,
				DNSQueriesAllowed: at.Stats.DNSQueriesAllowed, DNSQueriesBlocked: at.Stats.DNSQueriesBlocked,
			}
			if !yield(record) {
				return
			}
		}
	})
	return nil
}

func (a *api) listRefusals(w http.ResponseWriter, r *http.Request, _ string) error {
	selector, err := selectorOf(r)
	if err != nil {
		return err
	}
	selector.Match = func(at controlplane.Attachment) bool { return at.Status == controlplane.Refused }
	stream(w, "refusals", func(yield func(any) bool) {
		for at := range a.plane.Attachments(selector) {
			record := refusalRecord{
				ID: at.ID, DaemonID: at.DaemonID, Target: at.Target, Policy: a.source.Decides(at.Metadata),
				InForce: at.Revision, Error: at.Error,
			}
			if !yield(record) {
				return
			}
		}
	})
	return nil
}

// selectorOf reads ?id=ID&daemon=ID&metadata=KEY=VALUE, the last as often as is liked.
func selectorOf(r *http.Request) (controlplane.Selector, error) {
	var s controlplane.Selector
	for key, values := range r.URL.Query() {
		switch key {
		case "id":
			s.ID = values[0]
		case "daemon":
			s.DaemonID = values[0]
		case "metadata":
			s.Metadata = make(map[string]string, len(values))
			for _, pair := range values {
				name, value, ok := strings.Cut(pair, "=")
				if !ok {
					return s, &httpError{http.StatusBadRequest, "metadata: " + pair + " is not KEY=VALUE"}
				}
				s.Metadata[name] = value
			}
		default:
			return s, &httpError{http.StatusBadRequest, key + " is not known: id, daemon and metadata are"}
		}
	}
	return s, nil
}

// stream writes {"KEY": [...]} one element after the other: there may be hundreds of thousands.
func stream(w http.ResponseWriter, key string, list iter.Seq[any]) {
	w.Header().Set("Content-Type", "application/json")
	out := bufio.NewWriter(w)
	_, _ = out.WriteString(`{"` + key + `":[`) // a bufio.Writer keeps its error for the next call
	first := true
	for element := range list {
		if !first {
			_ = out.WriteByte(',')
		}
		first = false
		encoded, err := json.Marshal(element)
		if err != nil {
			panic(err) // of our own structs
		}
		if _, err := out.Write(encoded); err != nil {
			return // who hung up does not want to know
		}
	}
	_, _ = out.WriteString("]}\n")
	_ = out.Flush() // as above
}
