package fleet

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"sort"
	"strings"
	"sync"
	"time"
)

const (
	// silence after which a stream is given up: reports come once a second.
	silence = 5 * time.Second
	// maxLine bounds one report: 8 MiB are some ten thousand homes.
	maxLine = 8 << 20
	// A lost stream is tried again after backoffFirst, then twice as long each time up to backoffMost.
	backoffFirst = 100 * time.Millisecond
	backoffMost  = 5 * time.Second
)

// peers follows one stream of reports of each target.
type peers[T any] struct {
	client *http.Client
	log    *slog.Logger
	clocks time.Duration // as in Options
	path   string
	name   func(T) string              // who reports
	same   func(old, new T) bool       // nothing but clocks differs
	taken  func(name string, report T) // called with mu held; may be nil

	changed chan struct{} // holds one signal

	mu  sync.Mutex
	all map[string]*peer[T] // by Target.Worker
}

type peer[T any] struct {
	Target
	last      T
	seen      time.Time // of last; zero before the first report
	connected bool
	err       error // why not connected
	stop      context.CancelFunc
}

// sync follows exactly these targets. What a target reported is kept while it is listed.
func (p *peers[T]) sync(targets []Target) {
	p.mu.Lock()
	defer p.mu.Unlock()
	listed := map[string]bool{}
	for _, t := range targets {
		listed[t.Worker] = true
		old := p.all[t.Worker]
		if old != nil && old.Target == t {
			continue
		}
		next := &peer[T]{}
		if old != nil {
			old.stop()
			next.last, next.seen = old.last, old.seen
		}
		next.Target = t
		ctx, stop := context.WithCancel(context.Background())
		next.stop = stop
		p.all[t.Worker] = next
		go p.follow(ctx, next)
		p.signal()
	}
	for name, old := range p.all {
		if !listed[name] {
			old.stop()
			delete(p.all, name)
			p.signal()
		}
	}
}

// sorted calls each for every peer, in the order of names, with mu held.
func (p *peers[T]) sorted(each func(*peer[T])) {
	p.mu.Lock()
	defer p.mu.Unlock()
	names := make([]string, 0, len(p.all))
	for name := range p.all {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		each(p.all[name])
	}
}

func (p *peers[T]) signal() {
	select {
	case p.changed <- struct{}{}:
	default: // one is waiting already
	}
}

// follow keeps a stream open until ctx ends.
func (p *peers[T]) follow(ctx context.Context, to *peer[T]) {
	for lost := 0; ; lost++ {
		err := p.read(ctx, to.Target, func(report T) error {
			if name := p.name(report); name != to.Worker {
				// An address may have gone to another pod.
				return fmt.Errorf("%q answers there", name)
			}
			lost = 0
			p.take(ctx, to, report)
			return nil
		})
		if ctx.Err() != nil {
			return
		}
		p.lose(ctx, to, fmt.Errorf("follow %s at %s: %w", to.Worker, to.URL, err))
		if !Sleep(ctx, backoff(lost)) {
			return
		}
	}
}

func (p *peers[T]) take(ctx context.Context, to *peer[T], report T) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if ctx.Err() != nil { // another goroutine has this target by now
		return
	}
	changed := !to.connected || !p.same(to.last, report)
	to.last, to.seen, to.connected, to.err = report, time.Now(), true, nil
	if p.taken != nil {
		p.taken(to.Worker, report)
	}
	if changed {
		p.signal()
	}
}

func (p *peers[T]) lose(ctx context.Context, to *peer[T], err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if ctx.Err() != nil {
		return
	}
	if to.connected || to.err == nil {
		p.log.Info("stream lost", "worker", to.Worker, "error", err)
		p.signal()
	}
	to.connected, to.err = false, err
}

// read opens the stream once and gives each report to take. It never returns nil.
func (p *peers[T]) read(ctx context.Context, t Target, take func(T) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	quiet := time.AfterFunc(silence, func() { cancel(fmt.Errorf("nothing heard for %s", silence)) })
	defer quiet.Stop()
	err := func() error {
		res, err := request(ctx, p.client, t, http.MethodGet, p.path+"?watch=true", nil)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		if res.StatusCode != http.StatusOK {
			return unexpected(res)
		}
		lines := bufio.NewScanner(res.Body)
		lines.Buffer(make([]byte, 0, 16<<10), maxLine)
		var last struct { // report that was read
			print uint64
			at    time.Time
		}
		for lines.Scan() {
			if len(lines.Bytes()) == 0 {
				continue
			}
			if p.clocks > 0 {
				print := fingerprint(lines.Bytes())
				if print == last.print && time.Since(last.at) < p.clocks {
					quiet.Reset(silence)
					continue
				}
				last.print, last.at = print, time.Now()
			}
			var report T
			if err := json.Unmarshal(lines.Bytes(), &report); err != nil {
				return fmt.Errorf("read a report: %w", err)
			}
			if err := take(report); err != nil {
				return err
			}
			quiet.Reset(silence)
		}
		if err := lines.Err(); err != nil {
			return err
		}
		return io.ErrUnexpectedEOF
	}()
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// request sends one request with the target's token.
func request(ctx context.Context, client *http.Client, t Target, method, path string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(t.URL, "/")+path, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+t.Token)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	return client.Do(req)
}

// finish reads the rest of an answer, within bounds, so that its connection is used again.
func finish(res *http.Response) {
	io.CopyN(io.Discard, res.Body, maxLine)
	res.Body.Close()
}

// unexpected says what came instead of the answer that was asked for.
func unexpected(res *http.Response) error {
	if res.StatusCode == http.StatusUnauthorized || res.StatusCode == http.StatusForbidden {
		return fmt.Errorf("status %s: the token was not accepted", res.Status)
	}
	text, _ := io.ReadAll(io.LimitReader(res.Body, 512))
	return fmt.Errorf("status %s: %.200q", res.Status, strings.TrimSpace(string(text)))
}

// backoff is the jittered pause after so many failures in a row.
func backoff(failures int) time.Duration {
	pause := min(backoffFirst<<min(failures, 10), backoffMost)
	return pause/2 + rand.N(pause/2)
}

// Sleep reports false if ctx ended first.
func Sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
