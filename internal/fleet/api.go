// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/netfence/netfence/controlplane"
	"github.com/netfence/netfence/internal/folder"
	"github.com/netfence/netfence/internal/pki"
)

// openAPI describes the routes; a test holds the two together.
//
//go:embed openapi.yaml
var openAPI []byte

// access is what a route asks of its caller.
type access uint8

const (
	change access = iota // an administrator's token
	look                 // also one that may only look
	free                 // nothing
)

// api is what administrators see.
type api struct {
	source   *folder.Source
	store    store
	plane    *controlplane.ControlPlane
	audit    *audit
	counters *counters
	registry *prometheus.Registry
	admins   *files[tokens]    // nil: none
	daemons  *files[tokens]    // whose tokens are good for nothing here; nil: none
	lists    func() *pki.Lists // of revoked certificates; nil: none
	log      *slog.Logger
	refusals refusals
}

// route is one operation of openapi.yaml.
type route struct {
	method, path string
	access       access
	serve        func(w http.ResponseWriter, r *http.Request, who string) error
}

func (a *api) routes() []route {
	return []route{
		{"GET", "/v1/policies", look, a.listPolicies},
		{"GET", "/v1/policies/{name}", look, a.getPolicy},
		{"PUT", "/v1/policies/{name}", change, a.putPolicy},
		{"DELETE", "/v1/policies/{name}", change, a.deletePolicy},
		{"GET", "/v1/daemons", look, a.listDaemons},
		{"GET", "/v1/attachments", look, a.listAttachments},
		{"GET", "/v1/refusals", look, a.listRefusals},
		{"GET", "/metrics", look, a.metrics},
		{"GET", "/healthz", free, a.healthz},
		{"GET", "/readyz", free, a.readyz},
		{"GET", "/openapi.yaml", free, a.openAPI},
	}
}

// handler serves all routes.
func (a *api) handler() http.Handler {
	mux := http.NewServeMux()
	for _, r := range a.routes() {
		mux.HandleFunc(r.method+" "+r.path, func(w http.ResponseWriter, request *http.Request) {
			w.Header().Set("X-Content-Type-Options", "nosniff")
			w.Header().Set("Cache-Control", "no-store")
			who, err := a.admit(request, r.access)
			if err == nil {
				err = r.serve(w, request, who)
			}
			if err != nil {
				a.fail(w, request, err)
			}
		})
	}
	return mux
}

// admit tells who asks. A daemon's token is refused even where it is an administrator's too.
func (a *api) admit(r *http.Request, needs access) (string, error) {
	if needs == free {
		return "", nil
	}
	if a.lists != nil && r.TLS != nil { // the connection may be older than the list
		if err := a.lists().Revoked(r.TLS.VerifiedChains); err != nil {
			return "", &httpError{http.StatusUnauthorized, err.Error()}
		}
	}
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if token = strings.TrimSpace(token); !strings.EqualFold(scheme, "bearer") || token == "" {
		return "", &httpError{http.StatusUnauthorized, "an administrator's token is needed (Authorization: Bearer …)"}
	}
	if a.daemons != nil {
		if _, ok := a.daemons.get().find(token); ok {
			return "", &httpError{http.StatusUnauthorized, "the token is a daemon's, which administers nothing"}
		}
	}
	if a.admins == nil {
		return "", &httpError{http.StatusUnauthorized, "there are no administrators (configure api.tokens_file)"}
	}
	holder, ok := a.admins.get().find(token)
	if !ok {
		return "", &httpError{http.StatusUnauthorized, "the token is nobody's"}
	}
	if holder.read && needs == change {
		return "", &httpError{http.StatusForbidden, holder.name + " may only look"}
	}
	return holder.name, nil
}

// httpError is one that the caller is told of as it is.
type httpError struct {
	code int
	text string
}

func (e *httpError) Error() string { return e.text }

func (a *api) fail(w http.ResponseWriter, r *http.Request, err error) {
	var known *httpError
	if !errors.As(err, &known) {
		known = &httpError{http.StatusServiceUnavailable, err.Error()}
		a.log.Warn("request", "method", r.Method, "path", r.URL.Path, "err", err)
	}
	switch known.code {
	case http.StatusUnauthorized:
		w.Header().Set("WWW-Authenticate", `Bearer realm="netfence-control"`)
	case http.StatusMethodNotAllowed:
		w.Header().Set("Allow", http.MethodGet)
	}
	_ = answer(w, known.code, errorRecord{known.text}) // who hung up does not want to know
}

// errorRecord is the body of every answer that is not a success.
type errorRecord struct {
	Error string `json:"error"`
}

// answer writes a JSON body. Its error is the connection's.
func answer(w http.ResponseWriter, code int, body any) error {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	return json.NewEncoder(w).Encode(body)
}

func (a *api) metrics(w http.ResponseWriter, r *http.Request, _ string) error {
	promhttp.HandlerFor(a.registry, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(a.log.Handler(), slog.LevelWarn), MaxRequestsInFlight: 4,
	}).ServeHTTP(w, r)
	return nil
}

func (a *api) healthz(w http.ResponseWriter, _ *http.Request, _ string) error {
	_, _ = fmt.Fprintln(w, "ok") // who does not wait for it does not want to know
	return nil
}

// readyz: what this server decides is up to date, and it can decide about everything.
func (a *api) readyz(w http.ResponseWriter, _ *http.Request, _ string) error {
	if err := a.ready(); err != nil {
		return &httpError{http.StatusServiceUnavailable, strings.ReplaceAll(err.Error(), "\n", "; ")}
	}
	_, _ = fmt.Fprintln(w, "ok") // as above
	return nil
}

func (a *api) ready() error { return errors.Join(a.store.err(), a.source.Ready()) }

func (a *api) openAPI(w http.ResponseWriter, _ *http.Request, _ string) error {
	w.Header().Set("Content-Type", "application/yaml")
	_, _ = w.Write(openAPI) // as above
	return nil
}
