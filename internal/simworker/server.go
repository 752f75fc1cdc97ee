package simworker

import (
	"encoding/json"
	"net/http"
	"time"

	api "github.com/estiba/estiba/api/worker"
)

// handler answers for all workers: a request is for the one whose address it came to.
func (f *Fleet) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("PUT "+api.PathAssignment, f.authorized(assign))
	mux.Handle("GET "+api.PathState, f.authorized(state))
	mux.Handle("POST "+api.PathInspect, f.authorized(inspect))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	mux.HandleFunc("GET /readyz", f.ready)
	mux.HandleFunc("POST /v1/", f.infer)
	return mux
}

type handler func(to *Worker, w http.ResponseWriter, r *http.Request)

// authorized lets those through who know the pool's token.
func (f *Fleet) authorized(next handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch to := f.of(r); {
		case to == nil:
			http.Error(w, "no worker has this address", http.StatusServiceUnavailable)
		case r.Header.Get("Authorization") != "Bearer "+f.o.Token(to.pool):
			http.Error(w, "this path needs the token of the worker's pool", http.StatusUnauthorized)
		default:
			next(to, w, r)
		}
	})
}

func write(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // whoever has gone reads nothing
}

func assign(to *Worker, w http.ResponseWriter, r *http.Request) {
	var a api.Assignment
	if err := json.NewDecoder(r.Body).Decode(&a); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if refusal := to.assign(a); refusal != nil {
		write(w, http.StatusConflict, refusal)
		return
	}
	write(w, http.StatusOK, to.State())
}

func state(to *Worker, w http.ResponseWriter, r *http.Request) {
	if r.URL.Query().Get("watch") != "true" {
		write(w, http.StatusOK, to.State())
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	conn, lines := http.NewResponseController(w), json.NewEncoder(w)
	to.watch(r.Context(), func(s api.State) bool {
		return conn.SetWriteDeadline(time.Now().Add(10*time.Second)) == nil && lines.Encode(s) == nil && conn.Flush() == nil
	})
}

func inspect(to *Worker, w http.ResponseWriter, r *http.Request) {
	var in api.InspectRequest
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if pause(r.Context(), to.o.Read) {
		write(w, http.StatusOK, to.o.Inspect(in))
	}
}

func (f *Fleet) ready(w http.ResponseWriter, r *http.Request) {
	to := f.of(r)
	if to == nil || to.State().Draining {
		http.Error(w, "draining", http.StatusServiceUnavailable)
	}
}

// infer answers nothing in particular, after the time that it takes.
func (f *Fleet) infer(w http.ResponseWriter, r *http.Request) {
	model := r.Header.Get(api.HeaderModel)
	if to := f.of(r); to == nil || !to.request(r.Context(), model) {
		write(w, api.StatusLacks, map[string]any{"error": map[string]any{"message": "This worker does not take requests for " + model + " now.", "code": "model_not_here"}})
		return
	}
	write(w, http.StatusOK, map[string]any{"object": "text_completion", "model": model, "choices": []any{map[string]any{"index": 0, "text": "", "finish_reason": "length"}}})
}
