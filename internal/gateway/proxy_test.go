package gateway

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/internal/fleet"
)

// FuzzCopyEvents: however a stream is cut into reads, all of it arrives; and if
// it breaks, what arrived is a beginning of it that ends with a whole event,
// unless an event is larger than the buffer, which is then ended.
func FuzzCopyEvents(f *testing.F) {
	f.Add([]byte("data: 1\n\ndata: 2\r\n\r\ndata: half"), uint8(3), uint8(16))
	f.Add([]byte("\n\n\n\r\n\n"), uint8(1), uint8(4))
	f.Add([]byte("data: an event that is longer than the buffer\n\nx"), uint8(5), uint8(8))
	f.Fuzz(func(t *testing.T, stream []byte, step, size uint8) {
		buf := make([]byte, int(size)+4)
		for _, fate := range []error{io.EOF, errors.New("reset")} {
			w := httptest.NewRecorder()
			err := copyEvents(w, &stepper{stream, int(step)%len(buf) + 1, fate}, buf)
			got := w.Body.Bytes()
			if fate == io.EOF {
				if err != nil || !bytes.Equal(got, stream) {
					t.Fatalf("%q became %q, %v", stream, got, err)
				}
				continue
			}
			if _, ok := errors.AsType[readError](err); !ok {
				t.Fatalf("%v", err)
			}
			if len(got) > 0 && endOfEvents(got) != len(got) {
				t.Fatalf("%q ends with half an event: %q", stream, got)
			}
			if !bytes.HasPrefix(stream, got) && !bytes.HasPrefix(stream, bytes.TrimSuffix(got, []byte("\n\n"))) {
				t.Fatalf("%q became %q", stream, got)
			}
		}
	})
}

// stepper reads step bytes at a time, then fails.
type stepper struct {
	rest []byte
	step int
	fate error
}

func (s *stepper) Read(b []byte) (int, error) {
	if len(s.rest) == 0 {
		return 0, s.fate
	}
	n := copy(b, s.rest[:min(s.step, len(s.rest))])
	s.rest = s.rest[n:]
	return n, nil
}

// tcp is a gateway whose workers are behind real connections.
func tcp(t *testing.T, answers map[string]http.HandlerFunc) string {
	var targets []fleet.Target
	for name, answer := range answers {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == worker.PathState {
				load := map[string]int{"a": 0, "b": 9}[name] // a is always the first choice
				fmt.Fprintf(w, `{"worker":%q,"homes":[{"model":"ns/m","phase":"Resident","running":%d}]}`+"\n", name, load)
				http.NewResponseController(w).Flush()
				<-r.Context().Done()
				return
			}
			answer(w, r)
		}))
		t.Cleanup(server.Close)
		targets = append(targets, fleet.Target{Worker: name, URL: server.URL})
	}
	workers := fleet.New(fleet.NewClient(nil), fleet.Options{})
	t.Cleanup(func() { workers.Sync(nil) })
	workers.Sync(targets)
	g := New(workers, Options{HoldTimeout: 10 * time.Second})
	t.Cleanup(g.Close)
	g.SetModels([]Model{m})
	server := httptest.NewServer(g)
	t.Cleanup(server.Close)
	for {
		res, err := http.Get(server.URL + "/readyz")
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode == http.StatusOK {
			return server.URL
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// TestLargeBodyNotRead: a worker that answers 421 and leaves megabytes unread may
// reset the connection before its answer is seen; the next one gets it all the same.
func TestLargeBodyNotRead(t *testing.T) {
	size := 0
	url := tcp(t, map[string]http.HandlerFunc{
		"a": fails(421),
		"b": func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			size = len(body)
		},
	})
	body := `{"model":"m","x":"` + strings.Repeat("x", 7<<20) + `"}`
	for range 5 {
		size = 0
		res, err := http.Post(url+"/v1/completions", "application/json", strings.NewReader(body))
		if err != nil || res.StatusCode != 200 || size != len(body) {
			t.Fatalf("%v, %v, %d bytes of %d", res, err, size, len(body))
		}
		res.Body.Close()
	}
}

// TestReset: a worker whose process is killed resets its connections.
func TestReset(t *testing.T) {
	others := 0
	kill := func(w http.ResponseWriter) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		conn.(*net.TCPConn).SetLinger(0)
		conn.Close()
	}
	url := tcp(t, map[string]http.HandlerFunc{
		"a": func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			if r.URL.Path == "/v1/completions" {
				kill(w)
				return
			}
			events(w, "data: 1\n\n")
			time.Sleep(50 * time.Millisecond) // a reset may overtake what is unread
			kill(w)
		},
		"b": func(http.ResponseWriter, *http.Request) { others++ },
	})
	for path, want := range map[string]struct {
		status int
		begin  string
	}{
		"/v1/completions":      {502, `{"error":`},
		"/v1/chat/completions": {200, "data: 1\n\ndata: {\"error\":"},
	} {
		res, err := http.Post(url+path, "application/json", strings.NewReader(ask))
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || res.StatusCode != want.status || !strings.HasPrefix(string(body), want.begin) || !strings.Contains(string(body), "worker_lost") {
			t.Errorf("%s: %s %q, %v", path, res.Status, body, err)
		}
	}
	if others != 0 {
		t.Errorf("the other worker got %d requests", others)
	}
}
