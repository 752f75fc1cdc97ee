package source

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/estiba/estiba/api/worker"
)

func write(t *testing.T, path, content string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func link(t *testing.T, target, path string) {
	t.Helper()
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
}

func digest(content []byte) string {
	sum := sha256.Sum256(content)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func TestFileStaysBelowRoots(t *testing.T) {
	base, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	root, outside := filepath.Join(base, "models"), filepath.Join(base, "outside")
	write(t, root+"/good/config.json", "{}")
	write(t, root+"/one.gguf", "GGUF")
	write(t, root+"/blobs/weights", "w")
	write(t, root+"/cache/config.json", "{}")
	write(t, root+"/leaky/config.json", "{}")
	write(t, root+"/dangling/config.json", "{}")
	write(t, outside+"/secret", "s")
	write(t, base+"/models-of-others/x.gguf", "GGUF")
	link(t, outside, root+"/way-out")
	link(t, root+"/good", root+"/alias")
	link(t, "../blobs/weights", root+"/cache/model.safetensors") // as Hugging Face's own cache does
	link(t, outside+"/secret", root+"/leaky/model.safetensors")
	link(t, root+"/nowhere", root+"/dangling/model.safetensors")
	link(t, root+"/loop", root+"/loop")

	cases := map[string]struct {
		uri  string
		path string
		want error
		says string
	}{
		"folder":             {"file://" + root + "/good", root + "/good", nil, ""},
		"folder, slash":      {"file://" + root + "/good/", root + "/good", nil, ""},
		"localhost":          {"file://localhost" + root + "/one.gguf", root + "/one.gguf", nil, ""},
		"dots inside":        {"file://" + root + "/good/../one.gguf", root + "/one.gguf", nil, ""},
		"link inside":        {"file://" + root + "/alias", root + "/good", nil, ""},
		"links to blobs":     {"file://" + root + "/cache", root + "/cache", nil, ""},
		"the root itself":    {"file://" + root + "/blobs", root + "/blobs", nil, ""},
		"dots leave":         {"file://" + root + "/../outside/secret", "", ErrRefused, "modelRoots"},
		"escaped dots leave": {"file://" + root + "/%2e%2e/outside/secret", "", ErrRefused, root},
		"elsewhere":          {"file:///etc/passwd", "", ErrRefused, "lies outside the model roots"},
		"same beginning":     {"file://" + base + "/models-of-others/x.gguf", "", ErrRefused, ""},
		"link leaves":        {"file://" + root + "/way-out/secret", "", ErrRefused, "symbolic link"},
		"link within leaves": {"file://" + root + "/leaky", "", ErrRefused, "model.safetensors, that leads outside"},
		"link to nothing":    {"file://" + root + "/dangling", "", ErrUnavailable, "model.safetensors"},
		"loop":               {"file://" + root + "/loop", "", ErrUnavailable, ""},
		"missing":            {"file://" + root + "/missing", "", ErrUnavailable, "no such file"},
		"host":               {"file://server" + root + "/good", "", ErrRefused, "file:///folder"},
		"relative":           {"file:models", "", ErrRefused, "absolute"},
		"zero byte":          {"file://" + root + "/good%00", "", ErrRefused, ""},
		"scheme":             {"ftp://host/x.gguf", "", ErrRefused, "ftp"},
		"no slash":           {"https://host/model", "", ErrRefused, "slash"},
		"no cache":           {"https://host/model.gguf", "", ErrRefused, "--cache-dir"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			s := &Store{Roots: []string{root, base + "/absent"}}
			path, err := s.Fetch(t.Context(), worker.Source{URI: c.uri}, nil)
			if path != c.path || !errors.Is(err, c.want) {
				t.Fatalf("got %q, %v; want %q, %v", path, err, c.path, c.want)
			}
			if err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("%q does not say %q", err, c.says)
			}
		})
	}
	if _, err := (&Store{}).Fetch(t.Context(), worker.Source{URI: "file://" + root + "/good"}, nil); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "may read no files") {
		t.Errorf("without roots: %v", err)
	}
	if path, err := (&Store{AllowAll: true}).Fetch(t.Context(), worker.Source{URI: "file://" + root + "/leaky"}, nil); path != root+"/leaky" || err != nil {
		t.Errorf("all allowed: %q, %v", path, err)
	}
}

func TestFileDigest(t *testing.T) {
	root := t.TempDir()
	a := write(t, root+"/m/a.txt", "one")
	write(t, root+"/m/sub/b.txt", "two")
	hex1, hex2 := strings.TrimPrefix(digest([]byte("one")), "sha256:"), strings.TrimPrefix(digest([]byte("two")), "sha256:")
	lines := hex2 + "  sub/b.txt\n" + hex1 + "  a.txt\n"
	if hex1 < hex2 {
		lines = hex1 + "  a.txt\n" + hex2 + "  sub/b.txt\n"
	}
	s := &Store{Roots: []string{root}}
	try := func(path, digest string) error {
		_, err := s.Fetch(t.Context(), worker.Source{URI: "file://" + path, Digest: digest}, nil)
		return err
	}
	if err := try(a, digest([]byte("one"))); err != nil {
		t.Error(err)
	}
	if err := try(root+"/m", digest([]byte(lines))); err != nil {
		t.Error(err)
	}
	if err := try(a, digest([]byte("other"))); !errors.Is(err, ErrDigest) || !strings.Contains(err.Error(), digest([]byte("one"))) {
		t.Errorf("wrong digest: %v", err)
	}
	if err := try(a, "sha256:12"); !errors.Is(err, ErrDigest) {
		t.Errorf("malformed digest: %v", err)
	}
	// A digest covers what links to files lead to, and no links to folders.
	write(t, root+"/blobs/b", "two")
	write(t, root+"/linked/a.txt", "one")
	os.Mkdir(root+"/linked/sub", 0o755)
	link(t, root+"/blobs/b", root+"/linked/sub/b.txt")
	if err := try(root+"/linked", digest([]byte(lines))); err != nil {
		t.Error(err)
	}
	link(t, root+"/blobs", root+"/linked/more")
	if err := try(root+"/linked", digest([]byte(lines))); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "more is a symbolic link to a folder") {
		t.Errorf("a link to a folder: %v", err)
	}
	if err := try(root+"/linked", ""); err != nil {
		t.Errorf("without a digest: %v", err)
	}
	// An unchanged file is not read again: nobody could tell this content from the first.
	info, _ := os.Stat(a)
	write(t, a, "eno")
	os.Chtimes(a, info.ModTime(), info.ModTime())
	if err := try(a, digest([]byte("one"))); err != nil {
		t.Errorf("was read again: %v", err)
	}
	os.Chtimes(a, time.Now(), time.Now().Add(time.Second))
	if err := try(a, digest([]byte("one"))); !errors.Is(err, ErrDigest) {
		t.Errorf("a changed file: %v", err)
	}
}

// server serves files, and can cut connections, be down, and forget ranges.
type server struct {
	*httptest.Server
	mu       sync.Mutex
	files    map[string][]byte
	cut      map[int]int // request number -> bytes after which the connection is cut
	down     bool
	plain    bool // no validators, no ranges
	silent   bool // sends the header of an answer, then nothing
	requests atomic.Int64
	bytes    atomic.Int64
}

func serve(t *testing.T, files map[string][]byte) *server {
	s := &server{files: files, cut: map[int]int{}}
	quit := make(chan struct{})
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := int(s.requests.Add(1))
		s.mu.Lock()
		content, ok := s.files[r.URL.Path]
		cut, down, plain, silent := s.cut[n], s.down, s.plain, s.silent
		s.mu.Unlock()
		switch {
		case down:
			http.Error(w, "down", http.StatusServiceUnavailable)
			return
		case !ok:
			http.NotFound(w, r)
			return
		case silent:
			w.Header().Set("Content-Length", "100")
			w.WriteHeader(200)
			http.NewResponseController(w).Flush()
			select {
			case <-r.Context().Done():
			case <-quit:
			}
			return
		}
		counting := &counter{ResponseWriter: w, s: s, cut: cut}
		if plain {
			w.Header().Set("Content-Length", fmt.Sprint(len(content)))
			counting.Write(content)
			return
		}
		w.Header().Set("ETag", `"`+digest(content)+`"`)
		http.ServeContent(counting, r, "", time.Time{}, bytes.NewReader(content))
	}))
	t.Cleanup(func() { close(quit); s.Close() })
	return s
}

type counter struct {
	http.ResponseWriter
	s   *server
	cut int
	n   int
}

func (c *counter) Write(b []byte) (int, error) {
	if c.cut > 0 && c.n+len(b) > c.cut {
		n, _ := c.ResponseWriter.Write(b[:c.cut-c.n])
		c.s.bytes.Add(int64(n))
		http.NewResponseController(c.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	}
	n, err := c.ResponseWriter.Write(b)
	c.n += n
	c.s.bytes.Add(int64(n))
	return n, err
}

func (s *server) set(f func()) { s.mu.Lock(); defer s.mu.Unlock(); f() }

func content(n int, seed byte) []byte {
	b := make([]byte, n)
	x := uint32(seed) + 1
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	return b
}

func same(t *testing.T, path string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%s: %d bytes, %v; want %d other bytes", path, len(got), err, len(want))
	}
}

func TestDownloadResumes(t *testing.T) {
	big := content(1<<20, 1)
	srv := serve(t, map[string][]byte{"/m.gguf": big})
	srv.cut = map[int]int{1: 300_000, 2: 200_000}
	s := &Store{CacheDir: t.TempDir()}
	var last float64
	path, err := s.Fetch(t.Context(), worker.Source{URI: srv.URL + "/m.gguf", Digest: digest(big)}, func(f float64) {
		if f < last {
			t.Errorf("progress went back from %v to %v", last, f)
		}
		last = f
	})
	if err != nil {
		t.Fatal(err)
	}
	same(t, path, big)
	if filepath.Base(path) != "m.gguf" || last != 1 {
		t.Errorf("path %s, progress %v", path, last)
	}
	if got := srv.bytes.Load(); got != int64(len(big)) {
		t.Errorf("%d bytes went over the wire for %d", got, len(big))
	}
	// The second time nothing does.
	before := srv.requests.Load()
	if again, err := s.Fetch(t.Context(), worker.Source{URI: srv.URL + "/m.gguf", Digest: digest(big)}, nil); again != path || err != nil || srv.requests.Load() != before {
		t.Errorf("again: %s, %v, %d requests", again, err, srv.requests.Load()-before)
	}
	// Nor after a restart.
	if again, err := (&Store{CacheDir: s.CacheDir}).Fetch(t.Context(), worker.Source{URI: srv.URL + "/m.gguf", Digest: digest(big)}, nil); again != path || err != nil || srv.requests.Load() != before {
		t.Errorf("after a restart: %s, %v, %d requests", again, err, srv.requests.Load()-before)
	}
}

func TestResumeOfAChangedFileStartsAgain(t *testing.T) {
	one, two := content(500_000, 1), content(500_000, 2)
	srv := serve(t, map[string][]byte{"/m.gguf": one})
	srv.cut = map[int]int{1: 100_000}
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	s := &Store{CacheDir: dir, Client: &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
		if r.Header.Get("Range") != "" {
			srv.set(func() { srv.files["/m.gguf"] = two })
		}
		return http.DefaultTransport.RoundTrip(r)
	})}}
	defer cancel()
	path, err := s.Fetch(ctx, worker.Source{URI: srv.URL + "/m.gguf"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	same(t, path, two)
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestWrongDigest(t *testing.T) {
	big := content(100_000, 1)
	srv := serve(t, map[string][]byte{"/m.gguf": big})
	s := &Store{CacheDir: t.TempDir()}
	right := content(100_000, 2)
	src := worker.Source{URI: srv.URL + "/m.gguf", Digest: digest(right)}
	_, err := s.Fetch(t.Context(), src, nil)
	if !errors.Is(err, ErrDigest) || !strings.Contains(err.Error(), digest(big)) {
		t.Fatalf("got %v", err)
	}
	if n := folderSize(s.CacheDir); n != 0 {
		t.Errorf("%d bytes are left", n)
	}
	// The same content is not fetched again, other content is.
	if _, err := s.Fetch(t.Context(), src, nil); !errors.Is(err, ErrDigest) || !strings.Contains(err.Error(), "has digest "+digest(big)) || srv.bytes.Load() != int64(len(big)) {
		t.Errorf("again: %v, %d bytes", err, srv.bytes.Load())
	}
	srv.set(func() { srv.files["/m.gguf"] = right })
	path, err := s.Fetch(t.Context(), src, nil)
	if err != nil {
		t.Fatal(err)
	}
	same(t, path, right)
}

func TestUnreachableThenReachable(t *testing.T) {
	big := content(100_000, 1)
	srv := serve(t, map[string][]byte{"/m.gguf": big})
	srv.down = true
	s := &Store{CacheDir: t.TempDir(), Silence: 50 * time.Millisecond}
	src := worker.Source{URI: srv.URL + "/m.gguf"}
	if _, err := s.Fetch(t.Context(), src, nil); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "503") {
		t.Fatalf("down: %v", err)
	}
	srv.set(func() { srv.down, srv.silent = false, true })
	if _, err := s.Fetch(t.Context(), src, nil); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "silent") {
		t.Fatalf("silent: %v", err)
	}
	if _, err := s.Fetch(t.Context(), worker.Source{URI: "http://127.0.0.1:1/m.gguf"}, nil); !errors.Is(err, ErrUnavailable) {
		t.Fatalf("nobody listens: %v", err)
	}
	if _, err := s.Fetch(t.Context(), worker.Source{URI: srv.URL + "/other.gguf"}, nil); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "/other.gguf: is not there: the server answered 404 Not Found") {
		t.Fatalf("404: %v", err)
	}
	srv.set(func() { srv.silent = false })
	path, err := s.Fetch(t.Context(), src, nil)
	if err != nil {
		t.Fatal(err)
	}
	same(t, path, big)
	// Down again: the copy serves. Up with other content: it is fetched, unless the copy is in use.
	s.Release(path)
	srv.set(func() { srv.down = true })
	if _, err := s.Fetch(t.Context(), src, nil); err != nil {
		t.Fatal(err)
	}
	newer := content(120_000, 3)
	srv.set(func() { srv.down = false; srv.files["/m.gguf"] = newer })
	if path, err = s.Fetch(t.Context(), src, nil); err != nil {
		t.Fatal(err)
	}
	same(t, path, big)
	s.Release(path)
	s.Release(path)
	if path, err = s.Fetch(t.Context(), src, nil); err != nil {
		t.Fatal(err)
	}
	same(t, path, newer)
}

func TestFolder(t *testing.T) {
	files := map[string][]byte{
		"/m/config.json":                        []byte("{}"),
		"/m/tokenizer.json":                     []byte("{}"),
		"/m/model.safetensors.index.json":       []byte(`{"weight_map":{"a":"model-1.safetensors","b":"model-2.safetensors","c":"model-1.safetensors"}}`),
		"/m/model-1.safetensors":                content(300_000, 1),
		"/m/model-2.safetensors":                content(300_000, 2),
		"/bad/config.json":                      []byte("{}"),
		"/bad/model.safetensors.index.json":     []byte(`{"weight_map":{"a":"../../x.safetensors"}}`),
		"/empty/tokenizer.json":                 []byte("{}"),
		"/single/config.json":                   []byte("{}"),
		"/single/model.safetensors":             content(1000, 3),
		"/halfway/config.json":                  []byte("{}"),
		"/notjson/config.json":                  []byte("{}"),
		"/notjson/model.safetensors.index.json": []byte("<html>"),
	}
	srv := serve(t, files)
	srv.cut = map[int]int{8: 100_000}
	s := &Store{CacheDir: t.TempDir()}
	get := func(name string) (string, error) {
		return s.Fetch(t.Context(), worker.Source{URI: srv.URL + name}, nil)
	}
	path, err := get("/m/")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range files {
		if strings.HasPrefix(name, "/m/") {
			same(t, filepath.Join(path, name[3:]), want)
		}
	}
	left, _ := filepath.Glob(path + "/*")
	if len(left) != 5 {
		t.Errorf("the folder has %v", left)
	}
	if path, err = get("/single/"); err != nil {
		t.Fatal(err)
	}
	same(t, path+"/model.safetensors", files["/single/model.safetensors"])
	for name, want := range map[string]struct {
		kind error
		says string
	}{
		"/bad/":     {ErrInvalid, "../../x.safetensors"},
		"/notjson/": {ErrInvalid, "index.json"},
		"/empty/":   {ErrUnavailable, "has no config.json: the server answered 404 Not Found"},
		"/halfway/": {ErrUnavailable, "has no model.safetensors: the server answered 404"},
	} {
		if _, err := get(name); !errors.Is(err, want.kind) || !strings.Contains(err.Error(), want.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCacheIsBounded(t *testing.T) {
	files := map[string][]byte{}
	for i := range 4 {
		files[fmt.Sprintf("/%d.gguf", i)] = content(300_000, byte(i))
	}
	srv := serve(t, files)
	s := &Store{CacheDir: t.TempDir(), CacheSize: 1_000_000}
	get := func(i int) (string, error) {
		return s.Fetch(t.Context(), worker.Source{URI: fmt.Sprintf("%s/%d.gguf", srv.URL, i)}, nil)
	}
	paths := make([]string, 4)
	for i := range 3 {
		var err error
		if paths[i], err = get(i); err != nil {
			t.Fatal(err)
		}
		old := time.Now().Add(time.Duration(i-10) * time.Minute)
		os.Chtimes(filepath.Join(filepath.Dir(filepath.Dir(paths[i])), "meta.json"), old, old)
	}
	if _, err := get(3); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "spec.cache.size") {
		t.Fatalf("all is in use: %v", err)
	}
	s.Release(paths[1])
	s.Release(paths[2])
	if _, err := get(3); err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{true, false, true} { // 0 is held, 1 is older than 2
		if _, err := os.Stat(paths[i]); (err == nil) != want {
			t.Errorf("%d is there: %v", i, err == nil)
		}
	}
	if n := folderSize(s.CacheDir); n > s.CacheSize {
		t.Errorf("the cache holds %d of %d", n, s.CacheSize)
	}
}

// TestHeadersAreInTheAccount while they are held, by what they take: their weights are holes.
func TestHeadersAreInTheAccount(t *testing.T) {
	header := `{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}`
	weights := append(binary.LittleEndian.AppendUint64(nil, uint64(len(header))), header...)
	srv := serve(t, map[string][]byte{
		"/m/config.json": []byte("{}"), "/m/model.safetensors": append(weights, content(8<<20, 1)...), "/x.gguf": content(3<<20, 2),
	})
	s := &Store{CacheDir: t.TempDir(), CacheSize: 3<<20 + 512<<10}
	_, done, err := s.Header(t.Context(), worker.Source{URI: srv.URL + "/m/"})
	if err != nil {
		t.Fatal(err)
	}
	fetch := func() error {
		_, err := s.Fetch(t.Context(), worker.Source{URI: srv.URL + "/x.gguf"}, nil)
		return err
	}
	if err := fetch(); err == nil || !strings.Contains(err.Error(), "in use there") {
		t.Errorf("beside a header of 1 MiB: %v", err)
	}
	done()
	if err := fetch(); err != nil {
		t.Error(err)
	}
	if _, _, err := s.Header(t.Context(), worker.Source{URI: srv.URL + "/m/"}); err == nil || !strings.Contains(err.Error(), "in use there") {
		t.Errorf("a header where all is in use: %v", err)
	}
}

func TestWeightFiles(t *testing.T) {
	var many strings.Builder
	for i := range maxShards + 1 {
		fmt.Fprintf(&many, `"%d":"%d.safetensors",`, i, i)
	}
	for name, c := range map[string]struct{ index, want string }{
		"fine":       {`{"metadata":{"x":[1]},"weight_map":{"a":"b.safetensors","c":"a.safetensors","d":"b.safetensors"}}`, "a.safetensors b.safetensors <nil>"},
		"cut":        {`{"weight_map":{"a":"b.safetensors"`, "EOF"},
		"list":       {`{"weight_map":[]}`, "not an object"},
		"number":     {`{"weight_map":{"a":1}}`, "number"},
		"elsewhere":  {`{"weight_map":{"a":"/b.safetensors"}}`, "beside it"},
		"other kind": {`{"weight_map":{"a":"b.bin"}}`, "beside it"},
		"nothing":    {`{"weight_map":{}}`, "no files"},
		"no map":     {`{}`, "no files"},
		"many":       {`{"weight_map":{` + many.String(), "more than 4096"},
	} {
		names, err := weightFiles(strings.NewReader(c.index))
		if got := strings.Join(append(names, fmt.Sprint(err)), " "); !strings.Contains(got, c.want) {
			t.Errorf("%s: %.300s", name, got)
		}
	}
}

func TestConcurrentFetchesShareOneDownload(t *testing.T) {
	big := content(1<<20, 1)
	srv := serve(t, map[string][]byte{"/m.gguf": big})
	s := &Store{CacheDir: t.TempDir()}
	src := worker.Source{URI: srv.URL + "/m.gguf", Digest: digest(big)}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			path, err := s.Fetch(t.Context(), src, nil)
			if err != nil {
				t.Error(err)
				return
			}
			s.Release(path)
		})
	}
	wg.Wait()
	if srv.requests.Load() != 1 {
		t.Errorf("%d requests", srv.requests.Load())
	}
	if len(s.holds) != 0 || len(s.flights) != 0 || len(s.coming) != 0 {
		t.Errorf("left: %v %v %v", s.holds, s.flights, s.coming)
	}
}

func TestCancelKeepsThePart(t *testing.T) {
	big := content(1<<20, 1)
	srv := serve(t, map[string][]byte{"/m.gguf": big})
	srv.silent = true
	s := &Store{CacheDir: t.TempDir()}
	src := worker.Source{URI: srv.URL + "/m.gguf"}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(30*time.Millisecond, cancel)
	if _, err := s.Fetch(ctx, src, nil); !errors.Is(err, context.Canceled) {
		t.Fatalf("canceled: %v", err)
	}
	srv.set(func() { srv.silent = false })
	path, err := s.Fetch(t.Context(), src, nil) // at once: the first may still be ending
	if err != nil {
		t.Fatal(err)
	}
	same(t, path, big)
}

func TestHeader(t *testing.T) {
	tensors := append(binary.LittleEndian.AppendUint64(nil, 2_000_000), bytes.Repeat([]byte(" "), 2_000_000)...)
	tensors = append(tensors, content(3<<20, 1)...)
	files := map[string][]byte{
		"/m.gguf":              content(48<<20, 1),
		"/m/config.json":       []byte("{}"),
		"/m/model.safetensors": tensors,
	}
	srv := serve(t, files)
	s := &Store{CacheDir: t.TempDir()}
	path, done, err := s.Header(t.Context(), worker.Source{URI: srv.URL + "/m.gguf", Digest: digest(nil)})
	if err != nil {
		t.Fatal(err)
	}
	info, _ := os.Stat(path)
	if info.Size() != 48<<20 || srv.bytes.Load() != ggufHeader {
		t.Errorf("length %d after %d bytes", info.Size(), srv.bytes.Load())
	}
	done()
	srv.bytes.Store(0)
	path, done, err = s.Header(t.Context(), worker.Source{URI: srv.URL + "/m/"})
	if err != nil {
		t.Fatal(err)
	}
	got, _ := os.ReadFile(path + "/model.safetensors")
	if len(got) != len(tensors) || !bytes.Equal(got[:2_000_008], tensors[:2_000_008]) || srv.bytes.Load() > 2_100_000 {
		t.Errorf("%d bytes of %d, %d over the wire", len(got), len(tensors), srv.bytes.Load())
	}
	done()
	if n := folderSize(s.CacheDir); n != 0 {
		t.Errorf("%d bytes are left", n)
	}
	// Without ranges everything is fetched, and kept.
	srv.set(func() { srv.plain = true })
	path, done, err = s.Header(t.Context(), worker.Source{URI: srv.URL + "/m.gguf"})
	if err != nil {
		t.Fatal(err)
	}
	same(t, path, files["/m.gguf"])
	done()
	if _, _, err := s.Header(t.Context(), worker.Source{URI: srv.URL + "/none/"}); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "config.json") {
		t.Errorf("nothing there: %v", err)
	}
	if _, _, err := s.Header(t.Context(), worker.Source{URI: srv.URL + "/nope.gguf"}); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "/nope.gguf: is not there: the server answered 404 Not Found") {
		t.Errorf("not there: %v", err)
	}
	if len(s.holds) != 0 {
		t.Errorf("held: %v", s.holds)
	}
}

// TestPassword: errors come to conditions, which more people read than may have the source.
func TestPassword(t *testing.T) {
	for uri, want := range map[string]string{
		"https://me:secret@host/a?b=c@d": "https://me:xxxxx@host/a?b=c@d",
		"https://me:se@cret@host":        "https://me:xxxxx@host",
		"https://me:se cret@host":        "https://me:xxxxx@host",
		"https://me@host/a:b@c":          "https://me@host/a:b@c",
		"https://host:80/a":              "https://host:80/a",
		"file:///a:b@c":                  "file:///a:b@c",
		"nothing":                        "nothing",
	} {
		if got := (&Error{ErrUnavailable, uri, "is gone"}).Error(); got != want+": is gone" {
			t.Errorf("%s: %s", uri, got)
		}
	}
}
