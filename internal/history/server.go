package history

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"

	"github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/controllers"
)

// InspectRequest asks a worker of a pool to read the header of a source.
type InspectRequest struct {
	Pool    string                `json:"pool,omitempty"` // "namespace/name"; empty: any
	Request worker.InspectRequest `json:"request"`
}

// Ask has a worker of a pool read a header.
type Ask func(ctx context.Context, pool string, request worker.InspectRequest) (worker.Inspection, error)

// Current is what a decision has seen, with the clocks, loads and readings of now.
type Current func(controllers.Seen) controllers.Seen

// Handler serves decisions to programs on this machine, or in this pod: who
// reaches it there, as by kubectl port-forward, may see them.
func (r *Recorder) Handler(ask Ask, current Current) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+PathSnapshot, func(w http.ResponseWriter, req *http.Request) { r.serveLatest(w, req, current) })
	mux.HandleFunc("GET "+PathHistory, r.serveHistory)
	mux.HandleFunc("POST "+PathInspect, func(w http.ResponseWriter, req *http.Request) { serveInspect(w, req, ask) })
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if !near(req) {
			http.Error(w, "only programs on this machine may ask this, at a loopback address and without a proxy", http.StatusForbidden)
			return
		}
		mux.ServeHTTP(w, req)
	})
}

// near reports whether a request comes from a program of this machine: from
// its loopback, to its loopback (a page whose name was made to point here asks
// for that name), from no page of a browser, and through no proxy.
func near(r *http.Request) bool {
	for _, header := range []string{"Origin", "Forwarded", "X-Forwarded-For", "X-Real-Ip", "Via"} {
		if r.Header.Get(header) != "" {
			return false
		}
	}
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil || !peer.Addr().Unmap().IsLoopback() {
		return false
	}
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && ip.IsLoopback()
}

func (r *Recorder) serveLatest(w http.ResponseWriter, req *http.Request, current Current) {
	seen, plan, ok := r.Latest()
	if !ok {
		undecided(w)
		return
	}
	out := Snapshot{Version: Version, Seen: current(seen), Plan: plan}
	text, err := out.encode()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	var to io.Writer = w
	if strings.Contains(req.Header.Get("Accept-Encoding"), "gzip") {
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		defer z.Close()
		to = z
	}
	_, _ = to.Write(text) // a client that went away is no error of ours
}

func undecided(w http.ResponseWriter) {
	http.Error(w, "nothing has been decided here: this operator does not lead, or has just begun", http.StatusServiceUnavailable)
}

// encode is the snapshot in JSON, without secrets.
func (s Snapshot) encode() ([]byte, error) {
	redact := redacting(s.Seen.Models)
	s.Seen = stripped(s.Seen)
	text, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("encode a decision: %w", err)
	}
	return redact.text(text), nil
}

func serveInspect(w http.ResponseWriter, r *http.Request, ask Ask) {
	if t, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";"); t != "application/json" {
		http.Error(w, "the content type is not application/json", http.StatusUnsupportedMediaType)
		return
	}
	var in InspectRequest
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20)).Decode(&in); err != nil {
		http.Error(w, "the body is no request to inspect: "+err.Error(), http.StatusBadRequest)
		return
	}
	result, err := ask(r.Context(), in.Pool, in.Request)
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(result) // a client that went away is no error of ours
}
