package source

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/estiba/estiba/api/worker"
)

// The cache is a folder of entries. An entry KEY has meta.json and files/; it
// is made as KEY.part and renamed when everything in it has been checked.

// ours are the names that the cache may remove.
var ours = regexp.MustCompile(`^([0-9a-f]{32}(\.part)?|header-.*)$`)

const headerPrefix = "header-"

// keyFor names the entry of a source.
func keyFor(src worker.Source) string {
	sum := sha256.Sum256([]byte(src.URI + "\n" + src.Digest))
	return hex.EncodeToString(sum[:16])
}

func noCache(uri string) error {
	return &Error{ErrRefused, uri, "this worker has no cache folder for what it fetches; set --cache-dir"}
}

func (s *Store) fetchCached(ctx context.Context, src worker.Source, u *url.URL, progress func(float64)) (string, error) {
	if s.CacheDir == "" {
		return "", noCache(src.URI)
	}
	key := keyFor(src)
	path, err := s.join(ctx, key, progress, func(ctx context.Context, progress func(float64)) (string, error) {
		return s.download(ctx, key, src, u, progress)
	})
	if err == nil {
		progress(1)
	}
	return path, err
}

// entry is a folder of the cache.
type entry struct{ dir string }

func (s *Store) entry(key string) entry { return entry{filepath.Join(s.CacheDir, key)} }

func (e entry) part() entry   { return entry{e.dir + ".part"} }
func (e entry) files() string { return filepath.Join(e.dir, "files") }
func (e entry) meta() string  { return filepath.Join(e.dir, "meta.json") }

// path is what a model is opened by.
func (e entry) path(u *url.URL) string {
	if strings.HasSuffix(u.Path, "/") {
		return e.files()
	}
	return filepath.Join(e.files(), ggufName(u))
}

// metadata says what an entry was made from.
type metadata struct {
	URI   string               `json:"uri"`
	Files map[string]validator `json:"files"`
}

// validator identifies a version of a file on its server.
type validator struct {
	ETag     string `json:"etag,omitempty"`
	Modified string `json:"modified,omitempty"`
	Size     int64  `json:"size"`
}

func validatorOf(resp *http.Response) validator {
	return validator{ETag: resp.Header.Get("ETag"), Modified: resp.Header.Get("Last-Modified")}
}

// any says whether a range may be asked for by it: a weak tag does not do.
func (v validator) any() bool { return v.ifRange() != "" }

func (v validator) ifRange() string {
	if v.ETag != "" && !strings.HasPrefix(v.ETag, "W/") {
		return v.ETag
	}
	return v.Modified
}

func (v validator) ifNoneMatch() []string {
	if v.ETag == "" {
		return nil
	}
	return []string{v.ETag}
}

func (v validator) ifModifiedSince() []string {
	if v.Modified == "" || v.ETag != "" {
		return nil
	}
	return []string{v.Modified}
}

func (m *metadata) set(name string, v validator) {
	if m.Files == nil {
		m.Files = map[string]validator{}
	}
	m.Files[name] = v
}

func (m *metadata) size(name string, n int64) {
	v := m.Files[name]
	v.Size = n
	m.set(name, v)
}

// read is empty where there is no entry.
func (e entry) read() metadata {
	var m metadata
	if b, err := os.ReadFile(e.meta()); err == nil {
		if json.Unmarshal(b, &m) != nil {
			return metadata{}
		}
	}
	return m
}

func (e entry) write(m metadata) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	next := e.meta() + ".next"
	if err := os.WriteFile(next, b, 0o644); err != nil {
		return err
	}
	return os.Rename(next, e.meta())
}

// become makes a checked part folder the entry.
func (e entry) become(final entry) error {
	if err := os.RemoveAll(final.dir); err != nil {
		return err
	}
	return os.Rename(e.dir, final.dir)
}

func (e entry) remove() { os.RemoveAll(e.dir) }

// touch says that an entry was used now.
func (e entry) touch() {
	now := time.Now()
	os.Chtimes(e.meta(), now, now)
}

// keyOf is the entry that a path lies in.
func (s *Store) keyOf(path string) (string, bool) {
	if s.CacheDir == "" || path == "" {
		return "", false
	}
	rel, err := filepath.Rel(s.CacheDir, path)
	if err != nil || strings.HasPrefix(rel, "..") {
		return "", false
	}
	key, _, _ := strings.Cut(filepath.ToSlash(rel), "/")
	return key, ours.MatchString(key)
}

// sweep removes what an earlier process left of headers.
func (s *Store) sweep() {
	if s.CacheDir == "" {
		return
	}
	left, _ := filepath.Glob(filepath.Join(s.CacheDir, headerPrefix+"*"))
	for _, dir := range left {
		os.RemoveAll(dir)
	}
}

// item is a folder of the cache: an entry, its part, or a header's.
type item struct {
	name string
	size int64
	used time.Time
}

// measure reads what the cache's folders hold.
func (s *Store) measure() ([]item, error) {
	dir, err := os.ReadDir(s.CacheDir)
	if err != nil {
		return nil, err
	}
	var items []item
	for _, d := range dir {
		if !ours.MatchString(d.Name()) {
			continue
		}
		path := filepath.Join(s.CacheDir, d.Name())
		i := item{name: d.Name(), size: folderSize(path)}
		if info, err := os.Stat(filepath.Join(path, "meta.json")); err == nil {
			i.used = info.ModTime()
		}
		items = append(items, i)
	}
	slices.SortFunc(items, func(a, b item) int { return cmp.Or(a.used.Compare(b.used), cmp.Compare(a.name, b.name)) })
	return items, nil
}

// reserve makes room for n more bytes of an entry, by removing those that
// nobody holds, the least recently used first. The folders are measured without
// the lock; bytes that arrive meanwhile count twice, as coming and as there.
func (s *Store) reserve(key string, n int64) error {
	s.mu.Lock()
	s.coming[key] = max(n, 0)
	before := maps.Clone(s.coming)
	s.mu.Unlock()
	items, err := s.measure()
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var used, held, may int64
	for key, b := range s.coming {
		used += max(b, before[key])
	}
	var free []item
	for _, i := range items {
		used += i.size
		base := strings.TrimSuffix(i.name, ".part")
		if _, flying := s.flights[base]; flying || s.holds[base] > 0 || strings.HasPrefix(i.name, headerPrefix) {
			held += i.size
			continue
		}
		may += i.size
		free = append(free, i)
	}
	if need := used - s.CacheSize; need > may {
		return fmt.Errorf("needs %d bytes more in the cache of %d; %d are in use there: raise spec.cache.size of the pool (--cache-size of a worker)", n, s.CacheSize, held)
	}
	for _, i := range free {
		if used <= s.CacheSize {
			break
		}
		os.RemoveAll(filepath.Join(s.CacheDir, i.name))
		used -= i.size
	}
	return nil
}

// arrived says that n reserved bytes of an entry have been written.
func (s *Store) arrived(key string, n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.coming[key] = max(s.coming[key]-n, 0)
}

func (s *Store) forget(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.coming, key)
}

// folderSize is what the files below a folder take: less than their lengths where
// those have holes, as the weights of a header do.
func folderSize(dir string) (n int64) {
	filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil
		}
		if info, err := d.Info(); err == nil {
			size := info.Size()
			if stat, ok := info.Sys().(*syscall.Stat_t); ok && strings.HasPrefix(filepath.Base(dir), headerPrefix) {
				size = min(size, 512*stat.Blocks)
			}
			n += size
		}
		return nil
	})
	return n
}
