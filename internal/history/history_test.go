package history

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/controllers"
)

// told is what a decision does, in JSON; replayed says the same of one that was read.
func told(t testing.TB, plan controllers.Plan) string {
	t.Helper()
	plan.Models, plan.Pools, plan.Memory = nil, nil, controllers.Memory{}
	text, err := json.MarshalIndent(plan, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// What is read of a decision is decided like what was written, and comes out as it did.
func TestReadDecidesTheSame(t *testing.T) {
	c := newCluster(1, 40, 4)
	e := newEncoder()
	var text bytes.Buffer
	var seens []controllers.Seen
	var plans []controllers.Plan
	for i := range 60 {
		if i%5 == 4 {
			c.churn(2)
		}
		seen, plan := c.step()
		line, err := e.line(int64(i), seen, plan, i%25 == 0)
		if err != nil {
			t.Fatal(err)
		}
		text.Write(line)
		seens, plans = append(seens, seen), append(plans, plan)
	}
	n := 0
	err := Read(&text, func(d Decision) error {
		if diff := cmp.Diff(told(t, plans[n]), told(t, d.Plan)); diff != "" {
			t.Errorf("decision %d is kept as another one: %s", n, diff)
		}
		again := controllers.Decide(d.Seen)
		if diff := cmp.Diff(told(t, plans[n]), told(t, again)); diff != "" {
			t.Errorf("decision %d is decided otherwise: %s", n, diff)
		}
		was, _ := json.Marshal(plans[n].Memory)
		is, _ := json.Marshal(again.Memory)
		if diff := cmp.Diff(string(was), string(is)); diff != "" {
			t.Errorf("decision %d leaves another memory: %s", n, diff)
		}
		for i, m := range seens[n].Models {
			if d.Verdicts[controllers.Key(&m)] != Verdict(plans[n].Models[i]) {
				t.Errorf("decision %d: %s has verdict %s", n, m.Name, d.Verdicts[controllers.Key(&m)])
			}
		}
		n++
		return nil
	})
	if err != nil || n != len(plans) {
		t.Errorf("%d of %d decisions: %v", n, len(plans), err)
	}
	if strings.Contains(text.String(), "secret-of-annotations") {
		t.Error("annotations of others are kept")
	}
}

func TestNothingSecretIsKept(t *testing.T) {
	c := newCluster(2, 3, 1)
	uri := `https://user:pa"ss@host/x.gguf?token=<a>&sig=b`
	c.models[0].Spec.Source.URI = uri
	c.sizes[uri] = 3 * gib
	c.pool.Spec.Template = nil
	e := newEncoder()
	for i := range 5 {
		seen, plan := c.step()
		seen.Models[1].Status.Conditions = append(seen.Models[1].Status.Conditions[:0:0], seen.Models[1].Status.Conditions...)
		line, err := e.line(int64(i), seen, plan, true)
		if err != nil {
			t.Fatal(err)
		}
		whole, err := Snapshot{Version: Version, Seen: seen, Plan: plan}.encode()
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range [][]byte{line, whole} {
			for _, secret := range []string{`pa"ss`, `pa\"ss`, "user:", "token=", "sig=b", controllers.Revision(&c.models[0])} {
				if bytes.Contains(text, []byte(secret)) {
					t.Errorf("decision %d has %s: %s", i, secret, text)
				}
			}
		}
		err = Read(bytes.NewReader(line), func(d Decision) error {
			// With its other address and revision, the model is where it was.
			if a, b := len(controllers.Decide(d.Seen).Assignments), len(plan.Assignments); a != b {
				t.Errorf("decision %d: %d assignments, not %d", i, a, b)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	if at := c.memory.Workers["p-0"].Last.Homes; len(at) != 3 {
		t.Errorf("there are homes %v: nothing was proved", at)
	}
}

// recorded is a recorder that was told n decisions, one a second, and their number.
func recorded(t *testing.T, o RecorderOptions, c *cluster, n int) *Recorder {
	t.Helper()
	r := NewRecorder(o)
	for range n {
		r.Decided(c.step())
		r.encode()
	}
	return r
}

func count(t *testing.T, from io.Reader) (n int) {
	t.Helper()
	if err := Read(from, func(Decision) error { n++; return nil }); err != nil && !errors.Is(err, ErrCutOff) {
		t.Error(err)
	}
	return n
}

func TestRecorderKeepsTheLast(t *testing.T) {
	c := newCluster(3, 4, 1)
	r := NewRecorder(RecorderOptions{})
	for range 1300 {
		c.churn(1)
		r.Decided(c.step())
		r.encode()
	}
	n := 0
	for _, s := range r.segments {
		n += s.lines
	}
	if n < kept || n >= kept+segmentLines {
		t.Errorf("%d are kept", n)
	}
	var last int64
	for _, text := range r.texts() {
		if err := Read(bytes.NewReader(text), func(d Decision) error { last = d.Seq; return nil }); err != nil {
			t.Fatal(err)
		}
	}
	if last != 1300 {
		t.Errorf("the last one is %d", last)
	}
}

// Decisions that do nothing are kept every ten seconds.
func TestQuietDecisionsAreFew(t *testing.T) {
	c := newCluster(4, 4, 1)
	r := recorded(t, RecorderOptions{}, c, 30)
	settled := 0
	for _, s := range r.segments {
		settled += s.lines
	}
	for range 100 {
		r.Decided(c.step())
		r.encode()
	}
	n := -settled
	for _, s := range r.segments {
		n += s.lines
	}
	if n < 9 || n > 11 {
		t.Errorf("%d of 100 are kept", n)
	}
}

// A file that was cut off anywhere is read up to there.
func TestCutOff(t *testing.T) {
	dir := t.TempDir()
	c := newCluster(5, 10, 2)
	r := NewRecorder(RecorderOptions{Dir: dir})
	for range 20 {
		c.churn(1)
		r.Decided(c.step())
		r.encode()
	}
	files, err := historyFiles(dir)
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	whole, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	if n := count(t, bytes.NewReader(whole)); n != 20 {
		t.Errorf("%d decisions in the file", n)
	}
	before := 0
	for size := 0; size <= len(whole); size += 97 {
		n := count(t, bytes.NewReader(whole[:size]))
		if n < before {
			t.Errorf("%d decisions in %d bytes, and %d in fewer", n, size, before)
		}
		before = n
	}
	n := 0
	if err := ReadPath(t.Context(), dir, func(Decision) error { n++; return nil }); err != nil || n != 20 {
		t.Error(n, err)
	}
	if err := ReadPath(t.Context(), t.TempDir(), nil); err == nil || !strings.Contains(err.Error(), "no file decisions-") {
		t.Error(err)
	}
}

// TestReadTellsOfACut: what ends within a decision gives those before it, and says so; what ends between two, as while its writer goes on, does not.
func TestReadTellsOfACut(t *testing.T) {
	dir := t.TempDir()
	recorded(t, RecorderOptions{Dir: dir}, newCluster(4, 3, 1), 5)
	files, err := historyFiles(dir)
	if err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(files[0], int64(len(whole)-len(whole)/20)); err != nil {
		t.Fatal(err)
	}
	n := 0
	err = ReadPath(t.Context(), dir, func(Decision) error { n++; return nil })
	if !errors.Is(err, ErrCutOff) || !strings.Contains(err.Error(), files[0]) || n == 0 || n > 4 {
		t.Errorf("%d decisions, %v", n, err)
	}
}

// TestReadPathEnds: nobody writes to a pipe, or somebody does and goes on.
func TestReadPathEnds(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Skip(err)
	}
	for _, written := range []bool{false, true} {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if written {
			go func() {
				if f, err := os.OpenFile(pipe, os.O_WRONLY, 0); err == nil {
					defer f.Close()
					<-t.Context().Done()
				}
			}()
		}
		if err := ReadPath(ctx, pipe, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("written %v: %v", written, err)
		}
		cancel()
		if !written { // the one that still waits to open it
			if f, err := os.OpenFile(pipe, os.O_WRONLY, 0); err == nil {
				f.Close()
			}
		}
	}
}

func TestDiskIsBounded(t *testing.T) {
	dir := t.TempDir()
	for i := range 5 {
		f, err := os.Create(filepath.Join(dir, fmt.Sprintf("%s2026010%d%s", filePrefix, i, fileSuffix)))
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Truncate(maxDiskBytes / 4); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	recorded(t, RecorderOptions{Dir: dir}, newCluster(6, 3, 1), 2)
	files, err := historyFiles(dir)
	if err != nil || len(files) != 4 || !strings.Contains(files[0], "20260102") {
		t.Errorf("%v %v", files, err)
	}
}

func TestReadRefuses(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"no JSON":         {"hello\n", "invalid character"},
		"another version": {`{"v":7,"full":true}` + "\n", "version 7"},
		"no beginning":    {`{"v":1,"seq":3}` + "\n", "beginning is missing"},
		"unknown part":    {`{"v":1,"full":true,"set":{"planet/x":{}}}` + "\n", "planet/x"},
		"wrong part":      {`{"v":1,"full":true,"set":{"model/x":[]}}` + "\n", "model/x"},
	} {
		err := Read(strings.NewReader(c.text), func(Decision) error { return nil })
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	stop := errors.New("enough")
	if err := Read(strings.NewReader(`{"v":1,"full":true}`+"\n"), func(Decision) error { return stop }); !errors.Is(err, stop) {
		t.Error(err)
	}
}

func FuzzRead(f *testing.F) {
	c := newCluster(7, 3, 1)
	e := newEncoder()
	var text []byte
	for i := range 4 {
		seen, plan := c.step()
		line, err := e.line(int64(i), seen, plan, i == 0)
		if err != nil {
			f.Fatal(err)
		}
		text = append(text, line...)
	}
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	w.Write(text)
	w.Close()
	f.Add(text)
	f.Add(z.Bytes())
	f.Add([]byte(`{"v":1,"full":true,"set":{"clock/a":{"homes":[[1,2,3,4,5]]},"worker/a":{"report":{"homes":[]}}}}` + "\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		n := 0
		_ = Read(bytes.NewReader(text), func(d Decision) error {
			if n++; n > 20 {
				return errors.New("enough")
			}
			return nil
		})
	})
}

func TestEndpoints(t *testing.T) {
	c := newCluster(8, 5, 1)
	r := NewRecorder(RecorderOptions{})
	ask := func(_ context.Context, pool string, in worker.InspectRequest) (worker.Inspection, error) {
		if pool != "default/p" {
			return worker.Inspection{}, errors.New("no worker of pool " + pool + " is connected")
		}
		return worker.Inspection{Architecture: in.Source.URI}, nil
	}
	s := httptest.NewServer(r.Handler(ask, func(s controllers.Seen) controllers.Seen { return s }))
	defer s.Close()
	o := Options{Server: s.URL}
	if _, err := Latest(t.Context(), o); err == nil || !strings.Contains(err.Error(), "does not lead") {
		t.Errorf("before the first decision: %v", err)
	}
	var seen controllers.Seen
	var plan controllers.Plan
	for range 8 {
		seen, plan = c.step()
		r.Decided(seen, plan)
		r.encode()
	}
	got, err := Latest(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if a, b := told(t, controllers.Decide(got.Seen)), told(t, plan); a != b || len(got.Plan.Models) != len(seen.Models) {
		t.Errorf("the latest decision is %s, not %s", a, b)
	}
	var text bytes.Buffer
	if err := Fetch(t.Context(), o, &text); err != nil {
		t.Fatal(err)
	}
	if n := count(t, &text); n < 3 {
		t.Errorf("%d decisions were fetched", n)
	}
	in, err := Inspect(t.Context(), o, "default/p", worker.InspectRequest{Source: worker.Source{URI: "file:///x"}})
	if err != nil || in.Architecture != "file:///x" {
		t.Error(in, err)
	}
	if _, err := Inspect(t.Context(), o, "default/q", worker.InspectRequest{}); err == nil || !strings.Contains(err.Error(), "no worker of pool default/q") {
		t.Error(err)
	}
}

func TestOnlyNearMayAsk(t *testing.T) {
	for name, c := range map[string]struct {
		peer, host string
		header     string
		near       bool
	}{
		"this machine":             {peer: "127.0.0.1:5", host: "127.0.0.1:8083", near: true},
		"by its name":              {peer: "127.0.0.1:5", host: "localhost:8083", near: true},
		"IPv6":                     {peer: "[::1]:5", host: "[::1]:8083", near: true},
		"another machine":          {peer: "10.0.0.7:5", host: "127.0.0.1:8083"},
		"a name that points here":  {peer: "127.0.0.1:5", host: "evil.example:8083"},
		"a page of a browser":      {peer: "127.0.0.1:5", host: "localhost:8083", header: "Origin"},
		"a proxy on this machine":  {peer: "127.0.0.1:5", host: "localhost:8083", header: "X-Forwarded-For"},
		"this machine, on its IP":  {peer: "10.0.0.7:5", host: "10.0.0.7:8083"},
		"mapped, by a dual socket": {peer: "[::ffff:127.0.0.1]:5", host: "localhost", near: true},
	} {
		r := httptest.NewRequest(http.MethodGet, PathSnapshot, nil)
		r.RemoteAddr, r.Host = c.peer, c.host
		if c.header != "" {
			r.Header.Set(c.header, "x")
		}
		if near(r) != c.near {
			t.Errorf("%s: %v", name, !c.near)
		}
	}
}

// What keeps decisions is never in the way of what makes them, and rests.
func TestRecorderRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(9, 20, 2)
		r := NewRecorder(RecorderOptions{})
		go r.Run(t.Context())
		for range 50 {
			c.churn(1)
			r.Decided(c.step())
			time.Sleep(time.Millisecond)
		}
		synctest.Wait()
		if len(r.segments) != 1 || r.segments[0].lines == 0 {
			t.Errorf("%d segments", len(r.segments))
		}
	})
}

// BenchmarkKeep measures what keeping a decision costs the loop (told), and the goroutine beside it.
func BenchmarkKeep(b *testing.B) {
	for _, n := range []struct{ models, workers int }{{100, 4}, {10_000, 1_000}} {
		c := newCluster(10, n.models, n.workers)
		for range 6 {
			c.step()
		}
		b.Run(fmt.Sprintf("models=%d/full", n.models), func(b *testing.B) { keep(b, c, true) })
		b.Run(fmt.Sprintf("models=%d/next", n.models), func(b *testing.B) { keep(b, c, false) })
	}
}

func keep(b *testing.B, c *cluster, full bool) {
	r := NewRecorder(RecorderOptions{})
	seen, plan := c.step()
	r.Decided(seen, plan)
	r.encode()
	bytes := 0
	for b.Loop() {
		b.StopTimer()
		c.churn(max(1, len(c.models)/10_000))
		seen, plan := c.step()
		b.StartTimer()
		line, err := r.encoder.line(1, seen, plan, full)
		if err != nil {
			b.Fatal(err)
		}
		text, err := r.append(line, full)
		if err != nil {
			b.Fatal(err)
		}
		bytes += len(text)
	}
	b.ReportMetric(float64(bytes)/float64(b.N), "bytes/decision")
}
