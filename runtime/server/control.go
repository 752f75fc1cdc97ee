package server

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	api "github.com/estiba/estiba/api/worker"
)

// The largest bodies that are read: an assignment of ten thousand homes has
// some 5 MB.
const (
	maxAssignment = 32 << 20
	maxInspect    = 1 << 20
)

// control adds the paths of the control plane.
func (s *Server) control() {
	s.mux.Handle("PUT "+api.PathAssignment, s.authorized(s.assign))
	s.mux.Handle("GET "+api.PathState, s.authorized(s.state))
	s.mux.Handle("POST "+api.PathInspect, s.authorized(s.inspect))
}

// maxToken bounds a token's file, in bytes.
const maxToken = 64 << 10

// TokenFile reads a token from a file, anew each time: a mounted Secret changes.
func TokenFile(path string) func() (string, error) {
	return func() (string, error) {
		f, err := os.Open(path)
		if err != nil {
			return "", fmt.Errorf("read token: %w", err)
		}
		defer f.Close()
		b, err := io.ReadAll(io.LimitReader(f, maxToken+1))
		if err != nil {
			return "", fmt.Errorf("read token: %w", err)
		}
		switch token := strings.TrimSpace(string(b)); {
		case token == "":
			return "", fmt.Errorf("read token: %s is empty", path)
		case len(b) > maxToken:
			return "", fmt.Errorf("read token: %s has more than %d bytes: it holds something else", path, maxToken)
		default:
			return token, nil
		}
	}
}

// authorized lets those through who know the pool's token.
func (s *Server) authorized(next http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		want, err := s.token()
		if err != nil {
			s.log.Error("token not read", "error", err)
			fail(w, &apiError{status: http.StatusInternalServerError, Type: "server_error", Code: "no_token",
				Message: "This worker cannot read its token, so it takes no orders. Its log says why."})
			return
		}
		got, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		a, b := sha256.Sum256([]byte(got)), sha256.Sum256([]byte(want)) // of one length, so that the time tells nothing
		if !ok || want == "" || subtle.ConstantTimeCompare(a[:], b[:]) != 1 {
			w.Header().Set("WWW-Authenticate", "Bearer")
			fail(w, &apiError{status: http.StatusUnauthorized, Type: "invalid_request_error", Code: "wrong_token",
				Message: `This path needs the token of the worker's pool, as "Authorization: Bearer TOKEN".`})
			return
		}
		next(w, r)
	})
}

// decode reads a body of at most most bytes into v, or answers and says false.
func decode(w http.ResponseWriter, r *http.Request, most int64, v any) bool {
	err := json.NewDecoder(http.MaxBytesReader(w, r.Body, most)).Decode(v)
	if err == nil {
		return true
	}
	if _, large := errors.AsType[*http.MaxBytesError](err); large {
		fail(w, &apiError{status: http.StatusRequestEntityTooLarge, Type: "invalid_request_error", Code: "request_too_large",
			Message: fmt.Sprintf("The body is larger than %d MiB.", most>>20)})
	} else {
		fail(w, invalid("", "The body is not the JSON that is wanted here: %v.", err))
	}
	return false
}

func (s *Server) assign(w http.ResponseWriter, r *http.Request) {
	var a api.Assignment
	if !decode(w, r, maxAssignment, &a) {
		return
	}
	named := map[string]bool{}
	for i, h := range a.Homes {
		if h.Model == "" || named[h.Model] {
			fail(w, invalid("homes", "Home %d has no model, or one (%q) that another home has.", i, h.Model))
			return
		}
		named[h.Model] = true
	}
	if refusal := s.worker.Assign(a); refusal != nil {
		writeJSON(w, http.StatusConflict, refusal)
		return
	}
	writeJSON(w, http.StatusOK, s.worker.State())
}

func (s *Server) state(w http.ResponseWriter, r *http.Request) {
	if r.URL.Query().Get("watch") != "true" {
		writeJSON(w, http.StatusOK, s.worker.State())
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set("X-Accel-Buffering", "no")
	conn, lines := http.NewResponseController(w), json.NewEncoder(w)
	states := s.worker.Watch(r.Context())
	for {
		select {
		case <-s.ending.Done():
			return
		case state, ok := <-states:
			if !ok {
				return
			}
			conn.SetWriteDeadline(time.Now().Add(writeTimeout)) // a watcher that reads nothing goes
			if lines.Encode(state) != nil || conn.Flush() != nil {
				return
			}
		}
	}
}

func (s *Server) inspect(w http.ResponseWriter, r *http.Request) {
	var req api.InspectRequest
	if !decode(w, r, maxInspect, &req) {
		return
	}
	writeJSON(w, http.StatusOK, s.worker.Inspect(r.Context(), req))
}
