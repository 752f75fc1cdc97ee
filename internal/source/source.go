// Package source brings a model's files to where a worker can map them: it
// checks that a file:// path stays below the roots, and keeps what http(s)://
// gives in a bounded disk cache. Start with Store.Fetch.
package source

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/estiba/estiba/api/worker"
)

// The kinds of errors; ask with errors.Is. Every error of this package is an *Error.
var (
	// ErrUnavailable: the source cannot be read now; trying again later can help.
	ErrUnavailable = errors.New("source unavailable")
	// ErrDigest: what was read is not what the digest pins.
	ErrDigest = errors.New("digest mismatch")
	// ErrRefused: the source lies where this worker must not read.
	ErrRefused = errors.New("source refused")
	// ErrInvalid: the source can be read, but is not the files of a model.
	ErrInvalid = errors.New("source invalid")
)

// Error says what is wrong with a source, in words for the model's owner.
type Error struct {
	Kind    error // one of the above
	URI     string
	Message string
}

func (e *Error) Error() string { return withoutPassword(e.URI) + ": " + e.Message }
func (e *Error) Unwrap() error { return e.Kind }

// withoutPassword is uri as others may see it, in conditions and logs.
func withoutPassword(uri string) string {
	scheme, rest, ok := strings.Cut(uri, "://")
	if !ok {
		return uri
	}
	authority := rest
	if end := strings.IndexAny(rest, "/?#"); end >= 0 {
		authority = rest[:end]
	}
	at := strings.LastIndexByte(authority, '@')
	user, _, secret := strings.Cut(authority[:max(at, 0)], ":")
	if !secret {
		return uri
	}
	return scheme + "://" + user + ":xxxxx" + rest[at:]
}

// Reason is the wire's word for the kind.
func (e *Error) Reason() string {
	switch e.Kind {
	case ErrDigest:
		return worker.ReasonDigestMismatch
	case ErrInvalid:
		return worker.ReasonInvalidModel
	}
	return worker.ReasonSourceUnavailable
}

// Store fetches sources. Its fields do not change after the first call.
type Store struct {
	// Roots are the folders below which file:// may read.
	Roots []string
	// AllowAll lets file:// read everything if there are no Roots.
	AllowAll bool
	// CacheDir is where fetched files are kept; without it http(s):// is refused.
	CacheDir string
	// CacheSize bounds the cache, in bytes; 0 means 10 GiB.
	CacheSize int64
	// Client makes the requests; nil means one of its own.
	Client *http.Client
	// Silence is how long a server may send nothing; 0 means 30 s.
	Silence time.Duration

	digests digests

	once     sync.Once
	mu       sync.Mutex
	flights  map[string]*flight   // cache key -> the download under way
	holds    map[string]int       // cache key -> how many Fetches have not been released
	coming   map[string]int64     // cache key -> bytes that are still to be written
	rejected map[string]rejection // cache key -> the content whose digest was wrong
}

// rejection is content that was fetched and is not what is pinned.
type rejection struct {
	digest string
	files  map[string]validator
}

const (
	defaultCacheSize = 10 << 30
	defaultSilence   = 30 * time.Second
)

func (s *Store) init() {
	s.once.Do(func() {
		s.flights, s.holds = map[string]*flight{}, map[string]int{}
		s.coming, s.rejected = map[string]int64{}, map[string]rejection{}
		if s.CacheSize == 0 {
			s.CacheSize = defaultCacheSize
		}
		if s.Silence == 0 {
			s.Silence = defaultSilence
		}
		if s.Client == nil {
			s.Client = &http.Client{}
		}
		s.sweep()
	})
}

// Fetch makes a source's files available and returns the path of its folder or
// .gguf file. A cached copy stays until Release; the caller does not change
// it. progress, which may be nil, is told a share from 0 to 1. Concurrent
// fetches of one source share one download, which ends when nobody waits for it.
func (s *Store) Fetch(ctx context.Context, src worker.Source, progress func(done float64)) (string, error) {
	s.init()
	if progress == nil {
		progress = func(float64) {}
	}
	u, err := parse(src.URI)
	if err != nil {
		return "", err
	}
	if src.Digest != "" && !wellFormed(src.Digest) {
		return "", &Error{ErrDigest, src.URI, fmt.Sprintf("digest %q is not sha256: and 64 hexadecimal digits", src.Digest)}
	}
	if u.Scheme == "file" {
		return s.fetchFile(ctx, src, u, progress)
	}
	return s.fetchCached(ctx, src, u, progress)
}

// Release says that the path of one Fetch is no longer used: the cache may drop it.
func (s *Store) Release(path string) {
	key, ok := s.keyOf(path)
	if !ok {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.holds[key]--; s.holds[key] <= 0 {
		delete(s.holds, key)
	}
}

// Header makes as much of a source available as its header needs: enough for
// its footprint, not for running it. A digest is not checked. done gives back
// what was taken.
func (s *Store) Header(ctx context.Context, src worker.Source) (path string, done func(), err error) {
	s.init()
	u, err := parse(src.URI)
	if err != nil {
		return "", nil, err
	}
	if u.Scheme == "file" {
		path, err = s.local(src.URI, u)
		return path, func() {}, err
	}
	return s.headerCached(ctx, src, u)
}

// parse checks a URI's form.
func parse(uri string) (*url.URL, error) {
	u, err := url.Parse(uri)
	if err != nil {
		return nil, &Error{ErrRefused, uri, "is not a URI; write file:///folder or https://host/model.gguf"}
	}
	switch u.Scheme {
	case "file":
		if u.Host != "" && u.Host != "localhost" || !strings.HasPrefix(u.Path, "/") || u.RawQuery != "" || u.Fragment != "" || strings.ContainsRune(u.Path, 0) {
			return nil, &Error{ErrRefused, uri, "is not an absolute path; write file:///folder or file:///folder/model.gguf"}
		}
		return u, nil
	case "http", "https":
		if u.Host == "" {
			return nil, &Error{ErrRefused, uri, "names no host"}
		}
		if !strings.HasSuffix(u.Path, "/") && path.Ext(u.Path) != ".gguf" {
			return nil, &Error{ErrRefused, uri, "is neither a .gguf file nor a folder; end a folder's URL with a slash"}
		}
		return u, nil
	}
	return nil, &Error{ErrRefused, uri, fmt.Sprintf("scheme %q is not known here; use file://, http:// or https://", u.Scheme)}
}

// flight is a download that several Fetches may wait for.
type flight struct {
	cancel  context.CancelFunc
	done    chan struct{} // closed at the end
	waiting int
	watch   map[*func(float64)]struct{}
	path    string
	err     error
}

// join waits for the download of key, which is started if none is under way.
// On success the caller holds the key.
func (s *Store) join(ctx context.Context, key string, progress func(float64), download func(context.Context, func(float64)) (string, error)) (string, error) {
	s.mu.Lock()
	f := s.flights[key]
	for f != nil && f.waiting == 0 { // given up by all, and not yet at its end
		s.mu.Unlock()
		select {
		case <-f.done:
		case <-ctx.Done():
			return "", ctx.Err()
		}
		s.mu.Lock()
		f = s.flights[key]
	}
	if f == nil {
		var own context.Context
		f = &flight{done: make(chan struct{}), watch: map[*func(float64)]struct{}{}}
		own, f.cancel = context.WithCancel(context.WithoutCancel(ctx))
		s.flights[key] = f
		go func() {
			path, err := download(own, func(share float64) { s.report(f, share) })
			s.mu.Lock()
			f.path, f.err = path, err
			if err == nil && f.waiting > 0 {
				s.holds[key] += f.waiting
			}
			delete(s.flights, key)
			delete(s.coming, key)
			close(f.done)
			s.mu.Unlock()
			f.cancel()
		}()
	}
	f.waiting++
	f.watch[&progress] = struct{}{}
	s.mu.Unlock()

	select {
	case <-f.done:
		return f.path, f.err
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(f.watch, &progress)
	select {
	case <-f.done: // both at once: take it, the caller will look at its context
		return f.path, f.err
	default:
	}
	if f.waiting--; f.waiting == 0 {
		f.cancel() // the .part file stays: the next Fetch resumes it
	}
	return "", ctx.Err()
}

func (s *Store) report(f *flight, share float64) {
	s.mu.Lock()
	watch := make([]func(float64), 0, len(f.watch))
	for p := range f.watch {
		watch = append(watch, *p)
	}
	s.mu.Unlock()
	for _, p := range watch {
		p(share)
	}
}
