// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"regexp"
	"strings"

	"github.com/netfence/netfence/internal/folder"
)

// maxPolicy is what etcd takes in one request, with room for the rest of it.
const maxPolicy = 1 << 20

// policyName keeps names apart from paths, and printable.
var policyName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`)

// policyRecord is one policy as it is listed.
type policyRecord struct {
	Name     string            `json:"name"`
	Revision string            `json:"revision"`
	Priority int               `json:"priority"`
	Match    map[string]string `json:"match,omitempty"`
	Mode     string            `json:"mode,omitempty"`
	Error    string            `json:"error,omitempty"` // what is wrong with it; its last good state decides, if it had one
}

// changeRecord is the answer to a change.
type changeRecord struct {
	Name        string `json:"name"`
	OldRevision string `json:"old_revision,omitempty"`
	Revision    string `json:"revision,omitempty"`
}

func (a *api) listPolicies(w http.ResponseWriter, _ *http.Request, _ string) error {
	list := []policyRecord{}
	for _, e := range a.source.Entries() {
		r := policyRecord{Name: e.Name, Revision: e.Revision}
		if e.File != nil {
			r.Priority, r.Match, r.Mode = e.File.Priority, e.File.Match, e.File.Policy.Mode.String()
		}
		if e.Err != nil {
			r.Error = e.Err.Error()
		}
		list = append(list, r)
	}
	_ = answer(w, http.StatusOK, map[string]any{"policies": list}) // who hung up does not want to know
	return nil
}

func (a *api) getPolicy(w http.ResponseWriter, r *http.Request, _ string) error {
	name, err := nameOf(r)
	if err != nil {
		return err
	}
	data, revision, err := a.store.fetch(r.Context(), name)
	if errors.Is(err, fs.ErrNotExist) {
		return &httpError{http.StatusNotFound, "there is no such policy"}
	}
	if err != nil {
		return err
	}
	w.Header().Set("ETag", `"`+revision+`"`)
	w.Header().Set("Content-Type", "application/yaml")
	_, _ = w.Write(data) // as above
	return nil
}

func (a *api) putPolicy(w http.ResponseWriter, r *http.Request, who string) error {
	name, err := nameOf(r)
	if err != nil {
		return err
	}
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxPolicy))
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return &httpError{http.StatusRequestEntityTooLarge, "a policy is at most 1 MiB"}
	}
	if err != nil {
		return &httpError{http.StatusBadRequest, "the policy did not come whole: " + err.Error()}
	}
	if data == nil {
		data = []byte{}
	}
	done, err := a.change(r, "put", name, who, data, func(ctx context.Context, expected condition) (old, revision string, err error) {
		return a.store.put(ctx, name, data, expected)
	})
	if err != nil {
		return err
	}
	w.Header().Set("ETag", `"`+done.Revision+`"`)
	code := http.StatusOK
	if done.OldRevision == "" {
		code = http.StatusCreated
	}
	_ = answer(w, code, done) // as above
	return nil
}

func (a *api) deletePolicy(w http.ResponseWriter, r *http.Request, who string) error {
	name, err := nameOf(r)
	if err != nil {
		return err
	}
	done, err := a.change(r, "delete", name, who, nil, func(ctx context.Context, expected condition) (old, revision string, err error) {
		old, err = a.store.delete(ctx, name, expected)
		return old, "", err
	})
	if err != nil {
		return err
	}
	_ = answer(w, http.StatusOK, done) // as above
	return nil
}

// change judges a change, and does it between two lines of the audit log.
func (a *api) change(r *http.Request, what, name, who string, data []byte,
	do func(context.Context, condition) (old, revision string, err error),
) (changeRecord, error) {
	var none changeRecord
	if _, readOnly := a.store.(*dir); readOnly {
		return none, &httpError{http.StatusMethodNotAllowed, errReadOnly.Error()}
	}
	expected, err := conditionOf(r)
	if err != nil {
		return none, err
	}
	if err := a.store.err(); err != nil {
		return none, &httpError{http.StatusServiceUnavailable, err.Error() + " (nothing was changed)"}
	}
	attrs := []slog.Attr{
		slog.String("policy", name), slog.String("who", who), slog.String("address", r.RemoteAddr),
		slog.String("expected", expected.String()),
	}
	outcome := func(result string, more ...slog.Attr) {
		a.counters.changes.WithLabelValues(what, result).Inc()
		a.audit.note(what, append(append(attrs[:len(attrs):len(attrs)], slog.String("outcome", result)), more...)...)
	}
	if err := a.source.Check(name, data); err != nil {
		outcome("refused", slog.String("reason", err.Error()))
		return none, &httpError{http.StatusUnprocessableEntity, strings.ReplaceAll(err.Error(), "\n", "; ")}
	}
	if err := a.audit.record(what, append(attrs[:len(attrs):len(attrs)], slog.String("outcome", "asked"))...); err != nil {
		a.log.Error("a change was refused: it cannot be recorded", "err", err)
		return none, &httpError{http.StatusServiceUnavailable, "the change cannot be recorded, so it was not made"}
	}
	// What was begun is brought to its end, whoever hangs up.
	old, revision, err := do(context.WithoutCancel(r.Context()), expected)
	var conflict *conflictError
	switch {
	case errors.As(err, &conflict):
		outcome("conflict", slog.String("found", conflict.revision))
		return none, &httpError{http.StatusPreconditionFailed, conflict.Error()}
	case err != nil:
		outcome("unknown", slog.String("reason", err.Error()))
		return none, &httpError{http.StatusServiceUnavailable, err.Error() + " (read the policy again: the change may have been made)"}
	}
	outcome("done", slog.String("old_revision", old), slog.String("new_revision", revision))
	return changeRecord{Name: name, OldRevision: old, Revision: revision}, nil
}

func nameOf(r *http.Request) (string, error) {
	name := r.PathValue("name")
	if !policyName.MatchString(name) || !folder.IsName(name) {
		return "", &httpError{http.StatusBadRequest, "a policy's name is that of a file: letters, digits, _ . - and .yaml or .yml"}
	}
	return name, nil
}

// conditionOf reads what the caller believes that there is. Nobody overwrites what he has not seen by leaving it out.
func conditionOf(r *http.Request) (condition, error) {
	match, none := r.Header.Get("If-Match"), r.Header.Get("If-None-Match")
	switch {
	case match == "" && none == "*" && r.Method == http.MethodPut:
		return condition{absent: true}, nil
	case match == "*" && none == "":
		return condition{}, nil
	case len(match) > 2 && match[0] == '"' && match[len(match)-1] == '"' && none == "":
		return condition{revision: match[1 : len(match)-1]}, nil
	}
	return condition{}, &httpError{http.StatusPreconditionRequired,
		`say what there is: If-Match: "REVISION", If-Match: * for any, If-None-Match: * for a new policy`}
}

func (c condition) String() string {
	switch {
	case c.absent:
		return "absent"
	case c.revision == "":
		return "any"
	default:
		return c.revision
	}
}
