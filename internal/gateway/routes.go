package gateway

import (
	"cmp"
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"net/http"
	"path"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/estiba/estiba/api/worker"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

func (g *Gateway) routes() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("/v1/chat/completions", g.infer)
	mux.HandleFunc("/v1/completions", g.infer)
	mux.HandleFunc("/v1/embeddings", g.infer)
	mux.HandleFunc("/tokenize", g.infer)
	mux.HandleFunc("/detokenize", g.infer)
	mux.HandleFunc("GET /v1/models", g.list)
	mux.HandleFunc("GET /v1/models/{id...}", g.show)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", g.readyz)
	mux.Handle("GET /metrics", promhttp.HandlerFor(g.o.Registry, promhttp.HandlerOpts{}))
	if g.o.Token != nil {
		mux.HandleFunc("GET "+worker.PathGatewayState, g.report)
	}
	mux.HandleFunc("/", nowhere)
	return mux
}

func nowhere(w http.ResponseWriter, r *http.Request) {
	(&refusal{status: http.StatusNotFound, kind: kindInvalid, code: "not_found",
		message: fmt.Sprintf("There is no %s %s here.", shortened(r.Method), shortened(r.URL.Path))}).write(w)
}

func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if p := r.URL.Path; p != "/" && path.Clean(p) != strings.TrimSuffix(p, "/") { // a mux would redirect, in HTML
		nowhere(w, r)
		return
	}
	g.mux.ServeHTTP(w, r)
}

// listing is one served name, in OpenAI's shape.
type listing struct {
	ID      string `json:"id"`
	Object  string `json:"object"`
	Created int64  `json:"created"` // seconds since 1970
	OwnedBy string `json:"owned_by"`
}

// listing describes a served name; ok is false if there is none.
func (g *Gateway) listing(name string) (l listing, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	m := cmp.Or(g.names[name], g.models[name])
	if m == nil {
		return listing{}, false
	}
	namespace, _, _ := strings.Cut(m.key, "/")
	return listing{ID: name, Object: "model", Created: max(m.spec.Created.Unix(), 0), OwnedBy: namespace}, true
}

// list answers /v1/models with every name that a client may send.
func (g *Gateway) list(w http.ResponseWriter, _ *http.Request) {
	names := g.listed()
	data := make([]listing, 0, len(names))
	for _, name := range names {
		if l, ok := g.listing(name); ok {
			data = append(data, l)
		}
	}
	writeJSON(w, struct {
		Object string    `json:"object"`
		Data   []listing `json:"data"`
	}{"list", data})
}

func (g *Gateway) show(w http.ResponseWriter, r *http.Request) {
	l, ok := g.listing(r.PathValue("id"))
	if !ok {
		g.unknown(r.PathValue("id")).write(w)
		return
	}
	writeJSON(w, l)
}

func (g *Gateway) readyz(w http.ResponseWriter, _ *http.Request) {
	g.mu.Lock()
	known, ready := g.known, g.ready
	g.mu.Unlock()
	switch {
	case g.draining.Load():
		http.Error(w, "shutting down", http.StatusServiceUnavailable)
	case !known:
		http.Error(w, "the models are not known yet", http.StatusServiceUnavailable)
	case !ready:
		http.Error(w, "not every worker has reported yet", http.StatusServiceUnavailable)
	default:
		fmt.Fprintln(w, "ok")
	}
}

// State is what this gateway reports.
func (g *Gateway) State() worker.GatewayState {
	s := worker.GatewayState{Gateway: g.o.Name, Instance: g.instance, Time: time.Now(), Models: []worker.ModelDemand{}}
	g.mu.Lock()
	for _, m := range g.models {
		if len(m.held)+m.inFlight > 0 {
			s.Models = append(s.Models, worker.ModelDemand{Model: m.key, Held: len(m.held), InFlight: m.inFlight})
		}
	}
	g.mu.Unlock()
	slices.SortFunc(s.Models, func(a, b worker.ModelDemand) int { return strings.Compare(a.Model, b.Model) })
	return s
}

const (
	// A report is sent on a change, at most one in reportLeast, and at least one in reportMost.
	reportLeast = 50 * time.Millisecond
	reportMost  = time.Second
	// reportTimeout bounds the writing of one: a reader may have been stopped.
	reportTimeout = 10 * time.Second
)

// report answers PathGatewayState.
func (g *Gateway) report(w http.ResponseWriter, r *http.Request) {
	given, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	want := g.o.Token()
	if !ok || want == "" || subtle.ConstantTimeCompare([]byte(given), []byte(want)) != 1 {
		(&refusal{status: http.StatusUnauthorized, kind: kindInvalid, code: "invalid_api_key", message: "This needs the gateways' token."}).write(w)
		return
	}
	if r.URL.Query().Get("watch") != "true" {
		writeJSON(w, g.State())
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	rc := http.NewResponseController(w)
	look := time.NewTicker(reportLeast)
	defer look.Stop()
	var last worker.GatewayState
	for {
		s := g.State()
		if s.Time.Sub(last.Time) >= reportMost || !reflect.DeepEqual(s.Models, last.Models) {
			rc.SetWriteDeadline(time.Now().Add(reportTimeout)) // a writer that cannot is one of a test
			if json.NewEncoder(w).Encode(s) != nil || rc.Flush() != nil {
				return
			}
			last = s
		}
		if g.draining.Load() && len(s.Models) == 0 {
			return // nothing is left to tell, and the server waits for this to end
		}
		select {
		case <-r.Context().Done():
			return
		case <-look.C:
		}
	}
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v) // a client that left needs nothing
}
