package history

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestExchange(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("/silent", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	mux.HandleFunc("/stalls", func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, `{"a":`)
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	mux.HandleFunc("/html", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<html>hello</html>") })
	mux.HandleFunc("/lost", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "<html>no</html>", http.StatusNotFound) })
	mux.HandleFunc("/busy", func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "nothing yet", http.StatusServiceUnavailable)
	})
	mux.HandleFunc("/cut", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "9")
		io.WriteString(w, `{"a":`)
	})
	mux.HandleFunc("/closes", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	mux.HandleFunc("/good", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{"a":1}`) })
	server := httptest.NewServer(mux)
	defer server.Close()
	for path, says := range map[string]string{
		"silent": "has not answered for 100ms", "stalls": "has not answered for 100ms", "html": "answers with text/html; charset=utf-8, not with JSON", "lost": "answers 404 Not Found (is this",
		"busy": "answers 503 Service Unavailable: nothing yet", "cut": "ends too early", "closes": "closed the connection without an answer", "good": "",
	} {
		at, err := Address(strings.Replace(server.URL, "http://", "http://me:secret@", 1) + "/")
		if err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, at.JoinPath(path).String(), nil)
		if err != nil {
			t.Fatal(err)
		}
		var into map[string]int
		err = Exchange(t.Context(), http.DefaultClient, req, 100*time.Millisecond, func(r io.Reader) error { return json.NewDecoder(r).Decode(&into) })
		switch {
		case says == "" && (err != nil || into["a"] != 1):
			t.Errorf("%s: %v %v", path, err, into)
		case says != "" && (err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), "/"+path) || strings.Contains(err.Error(), "secret")):
			t.Errorf("%s: %v, want %q", path, err, says)
		}
	}
	for _, server := range []string{"http://u:p ss@x", "ftp://x", "", "http://"} {
		if _, err := Address(server); err == nil || strings.Contains(err.Error(), "p ss") {
			t.Errorf("%q: %v", server, err)
		}
	}
}
