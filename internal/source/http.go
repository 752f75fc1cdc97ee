package source

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/estiba/estiba/api/worker"
)

// The files of a Hugging Face folder that are asked for. HTTP has no listing,
// so the names are the ones that are read.
var folderFiles = []struct {
	name     string
	required bool
}{
	{"config.json", true},
	{"generation_config.json", false},
	{"tokenizer.json", false},
	{"tokenizer.model", false},
	{"tokenizer_config.json", false},
	{"special_tokens_map.json", false},
	{"chat_template.jinja", false},
	{"chat_template.json", false},
}

const (
	singleWeights = "model.safetensors"
	shardIndex    = "model.safetensors.index.json"
	// maxSmall bounds each file beside the weights, maxIndex the list of weights,
	// maxHeader the header of each and maxHeaders all of them: what a model's readers take.
	maxSmall   = 64 << 20
	maxIndex   = 32 << 20
	maxHeader  = 32 << 20
	maxHeaders = 64 << 20
	// maxShards bounds the weight files of one model.
	maxShards = 4096
	// ggufHeader is what is read of a .gguf to learn its footprint: metadata with
	// the vocabulary, then the list of tensors. The largest seen is about 16 MiB.
	ggufHeader = 32 << 20
	// checkTimeout bounds the question whether a copy is still good.
	checkTimeout = 5 * time.Second
)

// errNotFound is followed by the status.
var errNotFound = errors.New("the server answered")

// download brings everything into the part folder, checks it and makes it the entry.
func (s *Store) download(ctx context.Context, key string, src worker.Source, u *url.URL, progress func(float64)) (string, error) {
	if done, err := s.cached(ctx, key, src, u); done != "" || err != nil {
		return done, err
	}
	part := s.entry(key).part()
	if err := os.MkdirAll(part.files(), 0o755); err != nil {
		return "", &Error{ErrUnavailable, src.URI, "cannot be cached: " + err.Error()}
	}
	d := &downloader{store: s, key: key, src: src, entry: part, meta: part.read()}
	d.meta.URI = src.URI
	if err := d.all(ctx, u, progress); err != nil {
		return "", err
	}
	if src.Digest != "" {
		got, err := s.digests.of(ctx, part.path(u), func(float64) {})
		if err != nil {
			return "", unlessDone(ctx, &Error{ErrUnavailable, src.URI, err.Error()})
		}
		if got != src.Digest {
			s.mu.Lock()
			s.rejected[key] = rejection{got, d.meta.Files}
			s.mu.Unlock()
			part.remove()
			return "", mismatch(src, got)
		}
	}
	if err := part.become(s.entry(key)); err != nil {
		return "", &Error{ErrUnavailable, src.URI, "cannot be cached: " + err.Error()}
	}
	return s.entry(key).path(u), nil
}

// cached is the path of a complete copy that is still good. A copy that
// somebody holds, or whose content is pinned, is; else the server is asked,
// and a server that does not answer changes nothing.
func (s *Store) cached(ctx context.Context, key string, src worker.Source, u *url.URL) (string, error) {
	e := s.entry(key)
	meta := e.read()
	if len(meta.Files) == 0 {
		// The same content as last time would have the same wrong digest.
		s.mu.Lock()
		last, rejected := s.rejected[key]
		s.mu.Unlock()
		if rejected && !s.changed(ctx, u, last.files) {
			return "", mismatch(src, last.digest)
		}
		return "", nil
	}
	s.mu.Lock()
	held := s.holds[key] > 0
	s.mu.Unlock()
	if !held && src.Digest == "" && s.changed(ctx, u, meta.Files) {
		e.remove()
		return "", nil
	}
	e.touch()
	return e.path(u), nil
}

// changed says whether a server has other content than a copy was made from.
// One that does not answer has not.
func (s *Store) changed(ctx context.Context, u *url.URL, files map[string]validator) bool {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	for name, f := range files {
		resp, err := s.get(ctx, fileURL(u, name), http.Header{"If-None-Match": f.ifNoneMatch(), "If-Modified-Since": f.ifModifiedSince()})
		if err != nil {
			return false
		}
		resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			now := validatorOf(resp)
			if now.ETag != f.ETag || now.Modified != f.Modified || resp.ContentLength >= 0 && resp.ContentLength != f.Size {
				return true
			}
		}
	}
	return false
}

// downloader fetches the files of one source into its part folder.
type downloader struct {
	store *Store
	key   string
	src   worker.Source
	entry entry
	meta  metadata

	// Of headers: weight files that are still to come, bytes reserved for them, and
	// bytes that headers have beyond what is asked for first.
	ahead int
	room  int64
	long  int64
}

// all files of the source.
func (d *downloader) all(ctx context.Context, u *url.URL, progress func(float64)) error {
	if !strings.HasSuffix(u.Path, "/") {
		return d.file(ctx, u, ggufName(u), 0, progress)
	}
	weights, err := d.small(ctx, u)
	if err != nil {
		return err
	}
	for i, name := range weights {
		part := func(share float64) { progress((float64(i) + share) / float64(len(weights))) }
		if err := d.file(ctx, u, name, 0, part); err != nil {
			return d.orUnavailable(u, name, err)
		}
	}
	return nil
}

// small fetches the files beside the weights and returns the names of the weights.
func (d *downloader) small(ctx context.Context, u *url.URL) (weights []string, err error) {
	quiet := func(float64) {}
	for _, f := range folderFiles {
		err := d.file(ctx, u, f.name, maxSmall, quiet)
		if errors.Is(err, errNotFound) && !f.required {
			continue
		}
		if err != nil {
			return nil, d.orUnavailable(u, f.name, err)
		}
	}
	err = d.file(ctx, u, shardIndex, maxIndex, quiet)
	if errors.Is(err, errNotFound) {
		return []string{singleWeights}, nil
	}
	if err != nil {
		return nil, err
	}
	f, err := os.Open(filepath.Join(d.entry.files(), shardIndex))
	if err != nil {
		return nil, &Error{ErrUnavailable, d.src.URI, err.Error()}
	}
	defer f.Close()
	if weights, err = weightFiles(f); err != nil {
		return nil, &Error{ErrInvalid, d.src.URI, fmt.Sprintf("%s: %v", shardIndex, err)}
	}
	return weights, nil
}

// weightFiles are the names in an index, which is untrusted: it is not collected,
// and a name with a path in it would be written elsewhere.
func weightFiles(index io.Reader) ([]string, error) {
	dec := json.NewDecoder(index)
	names := map[string]bool{}
	object := func(member func(name string) error) error {
		if t, err := dec.Token(); err != nil || t != json.Delim('{') {
			return cmp.Or(err, errors.New("not an object"))
		}
		for dec.More() {
			t, err := dec.Token()
			if err != nil {
				return err
			}
			if err := member(t.(string)); err != nil {
				return err
			}
		}
		_, err := dec.Token()
		return err
	}
	err := object(func(key string) error {
		if key != "weight_map" {
			var skip json.RawMessage
			return dec.Decode(&skip)
		}
		return object(func(string) error {
			var name string
			if err := dec.Decode(&name); err != nil {
				return err
			}
			if name != path.Base(name) || strings.ContainsAny(name, `\`) || !strings.HasSuffix(name, ".safetensors") {
				return fmt.Errorf("%.200q is not the name of a .safetensors file beside it", name)
			}
			if names[name] = true; len(names) > maxShards {
				return fmt.Errorf("names more than %d files", maxShards)
			}
			return nil
		})
	})
	if err == nil && len(names) == 0 {
		err = errors.New("names no files")
	}
	return slices.Sorted(maps.Keys(names)), err
}

// orUnavailable turns a missing file into an error for people.
func (d *downloader) orUnavailable(u *url.URL, name string, err error) error {
	if !errors.Is(err, errNotFound) {
		return err
	}
	what := "has no " + name
	if !strings.HasSuffix(u.Path, "/") {
		what = "is not there"
	}
	return &Error{ErrUnavailable, d.src.URI, fmt.Sprintf("%s: %v", what, err)}
}

// file fetches one file, going on from where the last attempt ended. Each
// attempt must get further than the one before.
func (d *downloader) file(ctx context.Context, u *url.URL, name string, most int64, progress func(float64)) error {
	for {
		before := d.size(name)
		err := d.attempt(ctx, u, name, most, progress)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if e, ok := errors.AsType[*Error](err); ok {
			return e
		}
		if errors.Is(err, errNotFound) {
			os.Remove(d.part(name))
			if strings.HasSuffix(u.Path, "/") {
				return err
			}
			return d.orUnavailable(u, name, err)
		}
		if d.size(name) <= before {
			return &Error{ErrUnavailable, d.src.URI, fmt.Sprintf("%s: %v; it is tried again", name, err)}
		}
	}
}

func (d *downloader) part(name string) string {
	return filepath.Join(d.entry.files(), name+".part")
}

func (d *downloader) size(name string) int64 {
	info, err := os.Stat(d.part(name))
	if err != nil {
		return 0
	}
	return info.Size()
}

// attempt asks once for what is missing of a file.
func (d *downloader) attempt(ctx context.Context, u *url.URL, name string, most int64, progress func(float64)) error {
	final := filepath.Join(d.entry.files(), name)
	known := d.meta.Files[name]
	have, header := d.size(name), http.Header{}
	if _, err := os.Stat(final); err == nil && known.any() {
		header = http.Header{"If-None-Match": known.ifNoneMatch(), "If-Modified-Since": known.ifModifiedSince()}
		have = 0
	} else if have > 0 {
		// Without a validator only a pinned digest shows that both parts are of one file.
		if known.any() {
			header.Set("If-Range", known.ifRange())
		}
		if known.any() || d.src.Digest != "" {
			header.Set("Range", fmt.Sprintf("bytes=%d-", have))
		}
	}
	ctx, silence := d.store.watch(ctx)
	defer silence.stop()
	resp, err := d.store.get(ctx, fileURL(u, name), header)
	if err != nil {
		return silence.explain(err)
	}
	defer resp.Body.Close()
	flags := os.O_WRONLY | os.O_CREATE
	total := int64(-1)
	switch resp.StatusCode {
	case http.StatusNotModified:
		progress(1)
		return nil
	case http.StatusOK:
		have, total = 0, resp.ContentLength
		flags |= os.O_TRUNC
	case http.StatusPartialContent:
		start, all, ok := contentRange(resp)
		if !ok || start != have {
			os.Remove(d.part(name))
			return fmt.Errorf("the server answered with another range (%s)", resp.Header.Get("Content-Range"))
		}
		total = all
		flags |= os.O_APPEND
	case http.StatusRequestedRangeNotSatisfiable:
		os.Remove(d.part(name)) // the file has become shorter: start again
		return errors.New("the file changed while it was fetched")
	case http.StatusNotFound, http.StatusGone:
		return fmt.Errorf("%w %s", errNotFound, resp.Status)
	default:
		return fmt.Errorf("the server answered %s", resp.Status)
	}
	if most > 0 && (total > most || have > most) {
		return &Error{ErrInvalid, d.src.URI, fmt.Sprintf("%s has %d bytes, more than the %d of any real one", name, total, most)}
	}
	if resp.StatusCode == http.StatusOK {
		d.meta.set(name, validatorOf(resp))
		if err := d.entry.write(d.meta); err != nil {
			return &Error{ErrUnavailable, d.src.URI, "cannot be cached: " + err.Error()}
		}
	}
	f, err := os.OpenFile(d.part(name), flags, 0o644)
	if err != nil {
		return &Error{ErrUnavailable, d.src.URI, "cannot be cached: " + err.Error()}
	}
	defer f.Close()
	if err := d.copy(f, resp.Body, name, have, total, most, silence, progress); err != nil {
		return silence.explain(err)
	}
	if err := errors.Join(f.Sync(), f.Close(), os.Rename(d.part(name), final)); err != nil {
		return &Error{ErrUnavailable, d.src.URI, "cannot be cached: " + err.Error()}
	}
	return nil
}

// reserveStep is for servers that do not say how long a file is.
const reserveStep = 64 << 20

// copy writes what arrives behind the have bytes there are; total is -1 if unknown.
func (d *downloader) copy(f *os.File, body io.Reader, name string, have, total, most int64, silence *silence, progress func(float64)) error {
	reserved := have
	buf := make([]byte, 256<<10)
	for {
		if want := total; have >= reserved {
			if want < 0 {
				want = have + reserveStep
			}
			if err := d.store.reserve(d.key, want-have); err != nil {
				return &Error{ErrUnavailable, d.src.URI, err.Error()}
			}
			reserved = max(want, have+1)
		}
		n, err := body.Read(buf)
		silence.heard()
		if n > 0 {
			if _, err := f.Write(buf[:n]); err != nil {
				return &Error{ErrUnavailable, d.src.URI, "cannot be cached: " + err.Error()}
			}
			have += int64(n)
			d.store.arrived(d.key, int64(n))
			if most > 0 && have > most {
				return &Error{ErrInvalid, d.src.URI, fmt.Sprintf("%s has more than the %d bytes of any real one", name, most)}
			}
			if total > 0 {
				progress(float64(have) / float64(total))
			}
		}
		switch {
		case err == io.EOF && total >= 0 && have != total:
			return fmt.Errorf("the connection ended after %d of %d bytes", have, total)
		case err == io.EOF:
			d.meta.size(name, have)
			return d.entry.write(d.meta)
		case err != nil:
			return fmt.Errorf("the connection broke after %d bytes: %w", have, err)
		}
	}
}

func (s *Store) get(ctx context.Context, url string, header http.Header) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	for k, v := range header {
		if len(v) > 0 {
			req.Header[k] = v
		}
	}
	req.Header.Set("Accept-Encoding", "identity") // ranges count the bytes of the file itself
	req.Header.Set("User-Agent", "estiba")
	return s.Client.Do(req)
}

// silence cancels a request when nothing has arrived for a while.
type silence struct {
	timer  *time.Timer
	after  time.Duration
	cancel context.CancelCauseFunc
	ctx    context.Context
}

var errSilent = errors.New("the server went silent")

func (s *Store) watch(ctx context.Context) (context.Context, *silence) {
	ctx, cancel := context.WithCancelCause(ctx)
	w := &silence{after: s.Silence, cancel: cancel, ctx: ctx}
	w.timer = time.AfterFunc(s.Silence, func() { cancel(errSilent) })
	return ctx, w
}

func (w *silence) heard() { w.timer.Reset(w.after) }

func (w *silence) stop() {
	w.timer.Stop()
	w.cancel(nil)
}

// explain replaces the canceled context by its cause.
func (w *silence) explain(err error) error {
	if errors.Is(context.Cause(w.ctx), errSilent) {
		return fmt.Errorf("%w for %s", errSilent, w.after)
	}
	if e, ok := errors.AsType[*url.Error](err); ok {
		err = e.Err // the URL is in the message already
	}
	if e, ok := errors.AsType[*net.OpError](err); ok {
		return fmt.Errorf("%s: %w", e.Op, e.Err) // without addresses: a port that changes makes each try look like news
	}
	return err
}

// contentRange reads "bytes 5-9/10"; all is -1 if the length is not known.
func contentRange(resp *http.Response) (start, all int64, ok bool) {
	rest, ok := strings.CutPrefix(resp.Header.Get("Content-Range"), "bytes ")
	span, length, ok2 := strings.Cut(rest, "/")
	first, _, ok3 := strings.Cut(span, "-")
	if !ok || !ok2 || !ok3 {
		return 0, 0, false
	}
	start, err := strconv.ParseInt(first, 10, 64)
	if err != nil || start < 0 {
		return 0, 0, false
	}
	if length == "*" {
		return start, -1, true
	}
	all, err = strconv.ParseInt(length, 10, 64)
	return start, all, err == nil && all >= 0
}

// ggufName is the name under which a .gguf is kept.
func ggufName(u *url.URL) string {
	name := path.Base(u.Path)
	for _, c := range name {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("._-", c)) {
			return "model.gguf"
		}
	}
	if name == ".gguf" || len(name) > 200 {
		return "model.gguf"
	}
	return name
}

// fileURL is the address of a file of a source: the URL itself, or below it for a folder.
func fileURL(u *url.URL, name string) string {
	if !strings.HasSuffix(u.Path, "/") {
		return u.String()
	}
	return u.JoinPath(name).String()
}

// headerCached makes a folder in which each weight file has its true length
// and only its header is filled in, by ranged requests. A server without
// ranges is asked for everything.
func (s *Store) headerCached(ctx context.Context, src worker.Source, u *url.URL) (string, func(), error) {
	if s.CacheDir == "" {
		return "", nil, noCache(src.URI)
	}
	whole := func() (string, func(), error) {
		path, err := s.fetchCached(ctx, src, u, func(float64) {})
		return path, func() { s.Release(path) }, err
	}
	if len(s.entry(keyFor(src)).read().Files) > 0 {
		return whole()
	}
	if err := os.MkdirAll(s.CacheDir, 0o755); err != nil {
		return "", nil, &Error{ErrUnavailable, src.URI, "cannot be cached: " + err.Error()}
	}
	dir, err := os.MkdirTemp(s.CacheDir, headerPrefix)
	if err != nil {
		return "", nil, &Error{ErrUnavailable, src.URI, "cannot be cached: " + err.Error()}
	}
	e := entry{dir}
	done := func() { os.RemoveAll(dir) }
	if err := os.MkdirAll(e.files(), 0o755); err != nil {
		done()
		return "", nil, &Error{ErrUnavailable, src.URI, "cannot be cached: " + err.Error()}
	}
	d := &downloader{store: s, key: filepath.Base(dir), src: src, entry: e, meta: e.read()}
	defer s.forget(d.key)
	weights := []string{ggufName(u)}
	if strings.HasSuffix(u.Path, "/") {
		weights, err = d.small(ctx, u)
	}
	for i, name := range weights {
		if err == nil {
			d.ahead = len(weights) - i
			err = d.orUnavailable(u, name, d.header(ctx, u, name))
		}
	}
	if errors.Is(err, errNoRanges) {
		done()
		return whole()
	}
	if err != nil {
		done()
		if _, ok := errors.AsType[*Error](err); !ok {
			err = unlessDone(ctx, &Error{ErrUnavailable, src.URI, err.Error()})
		}
		return "", nil, err
	}
	return e.path(u), done, nil
}

var errNoRanges = errors.New("the server has no ranges")

// header writes the beginning of a weight file and makes the rest a hole.
func (d *downloader) header(ctx context.Context, u *url.URL, name string) error {
	f, err := os.Create(filepath.Join(d.entry.files(), name))
	if err != nil {
		return err
	}
	defer f.Close()
	first := int64(ggufHeader)
	if strings.HasSuffix(name, ".safetensors") {
		first = 1 << 20
	}
	total, err := d.ranged(ctx, u, name, f, 0, first, d.ahead)
	if err != nil {
		return err
	}
	if strings.HasSuffix(name, ".safetensors") {
		var b [8]byte
		if _, err := f.ReadAt(b[:], 0); err == nil {
			if n := binary.LittleEndian.Uint64(b[:]); n > uint64(first)-8 && n <= maxHeader && int64(n)+8 <= total {
				more := int64(n) + 8 - first
				if d.long += more; d.long > maxHeaders {
					return &Error{ErrInvalid, d.src.URI, fmt.Sprintf("the headers of its weights have more than %d bytes together", maxHeaders)}
				}
				if _, err := d.ranged(ctx, u, name, f, first, more, 1); err != nil {
					return err
				}
			}
		}
	}
	return errors.Join(f.Truncate(total), f.Close())
}

// reserve makes room for n bytes of a header, and at once for as many of others
// that follow: the cache is measured each time.
func (d *downloader) reserve(n int64, times int) error {
	if n > d.room {
		d.room = n * int64(times)
		if err := d.store.reserve(d.key, d.room); err != nil {
			return err
		}
	}
	d.room -= n
	return nil
}

// ranged copies n bytes from start on, fewer if the file ends; it returns the
// file's length. So many files of the kind are to come, with this one.
func (d *downloader) ranged(ctx context.Context, u *url.URL, name string, f *os.File, start, n int64, times int) (total int64, err error) {
	ctx, silence := d.store.watch(ctx)
	defer silence.stop()
	resp, err := d.store.get(ctx, fileURL(u, name), http.Header{"Range": {fmt.Sprintf("bytes=%d-%d", start, start+n-1)}})
	if err != nil {
		return 0, silence.explain(err)
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusPartialContent:
		from, all, ok := contentRange(resp)
		if !ok || from != start || all < 0 {
			return 0, errNoRanges
		}
		total = all
	case http.StatusOK:
		return 0, errNoRanges
	case http.StatusNotFound, http.StatusGone:
		return 0, fmt.Errorf("%w %s", errNotFound, resp.Status)
	default:
		return 0, fmt.Errorf("the server answered %s", resp.Status)
	}
	if err := d.reserve(min(n, total-start), times); err != nil {
		return 0, &Error{ErrUnavailable, d.src.URI, err.Error()}
	}
	w := io.NewOffsetWriter(f, start)
	buf := make([]byte, 256<<10)
	body := io.LimitReader(resp.Body, n)
	for {
		n, err := body.Read(buf)
		silence.heard()
		if _, err := w.Write(buf[:n]); err != nil {
			return 0, err
		}
		d.store.arrived(d.key, int64(n))
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return 0, silence.explain(err)
		}
	}
}
