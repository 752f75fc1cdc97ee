package history

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/estiba/estiba/controllers"
)

const (
	// kept decisions at least, as long as they fit; and maxBytes of them, compressed, in memory
	// and, as files, on disk.
	kept           = 1000
	maxMemoryBytes = 48 << 20
	maxDiskBytes   = 256 << 20
	// A segment has so many decisions, or fewer whose changes are as long as its full one, and at least so many bytes.
	segmentLines = 100
	segmentBytes = 1 << 20
	// quiet is how long nothing is kept of decisions that do nothing: they differ in clocks and counters.
	quiet = 10 * time.Second
	// share of one processor's time that keeping may take: one part in so many.
	share = 20

	filePrefix, fileSuffix = "decisions-", ".jsonl.gz"
)

// RecorderOptions of a Recorder.
type RecorderOptions struct {
	Dir string // where decisions are kept too; empty: in memory only
	Log *slog.Logger
}

// Recorder keeps the last decisions: each one that does something, and one in
// ten seconds of the others. It encodes them beside the loop that decides, in at
// most a twentieth of one processor's time; of those that come while it is behind,
// it keeps the latest that does something. It may be used from several goroutines.
type Recorder struct {
	o RecorderOptions

	mu       sync.Mutex
	seq      int64
	latest   *decided
	waiting  *decided
	last     time.Time // that a decision was kept, by its own clock
	dropped  int64
	wake     chan struct{}
	segments []*segment // the last one is being written

	// What follows belongs to the goroutine that encodes.
	encoder *encoder
	z       *gzip.Writer // of the last segment, to out
	out     bytes.Buffer
	file    *os.File
}

// decided is a decision as it was told.
type decided struct {
	seq  int64
	seen controllers.Seen
	plan controllers.Plan
}

// segment is a full decision and those that follow it, compressed; what there is of it can be read at any time.
type segment struct {
	text  []byte
	first int // bytes of the full one
	lines int
}

func (s *segment) isFull() bool {
	return s.lines >= segmentLines || len(s.text)-s.first > max(s.first, segmentBytes)
}

// NewRecorder makes a Recorder that has been told nothing. Run has it encode.
func NewRecorder(o RecorderOptions) *Recorder {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Recorder{o: o, wake: make(chan struct{}, 1), encoder: newEncoder()}
}

// Decided tells it a decision. It keeps references, and returns at once.
func (r *Recorder) Decided(seen controllers.Seen, plan controllers.Plan) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seq++
	d := &decided{r.seq, seen, plan}
	r.latest = d
	acts := acts(plan)
	if !acts && (seen.Now.Sub(r.last) < quiet && !seen.Now.Before(r.last) || r.waiting != nil) {
		return
	}
	if r.waiting != nil {
		r.dropped++
	}
	r.waiting, r.last = d, seen.Now
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// acts reports whether a plan does something.
func acts(p controllers.Plan) bool {
	return len(p.Assignments)+len(p.Inspect)+len(p.Create)+len(p.Delete)+len(p.Labels)+len(p.Disruption)+len(p.Moves) > 0
}

// Latest is the last decision; not ok: there was none.
func (r *Recorder) Latest() (seen controllers.Seen, plan controllers.Plan, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.latest == nil {
		return seen, plan, false
	}
	return r.latest.seen, r.latest.plan, true
}

// Run encodes what it is told until ctx ends.
func (r *Recorder) Run(ctx context.Context) {
	defer r.closeFile()
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
		}
		began := time.Now()
		r.encode()
		select {
		case <-ctx.Done():
			return
		case <-time.After((share - 1) * time.Since(began)):
		}
	}
}

// encode keeps the decision that waits.
func (r *Recorder) encode() {
	r.mu.Lock()
	d := r.waiting
	r.waiting = nil
	full := len(r.segments) == 0 || r.segments[len(r.segments)-1].isFull()
	r.mu.Unlock()
	if d == nil {
		return
	}
	line, err := r.encoder.line(d.seq, d.seen, d.plan, full)
	if err != nil {
		r.o.Log.Error("a decision is not kept", "error", err)
		return
	}
	text, err := r.append(line, full)
	if err == nil && r.o.Dir != "" {
		err = r.write(text, full, d)
	}
	if err != nil {
		r.o.Log.Error("a decision is not kept on disk", "error", err)
	}
}

// append puts a line into its segment, a full one into a new one, and returns it compressed.
func (r *Recorder) append(line []byte, full bool) ([]byte, error) {
	r.out.Reset()
	if full {
		r.z, _ = gzip.NewWriterLevel(&r.out, gzip.BestSpeed) // the level is one
	}
	if _, err := r.z.Write(line); err != nil {
		return nil, err
	}
	if err := r.z.Flush(); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if full {
		r.segments = append(r.segments, &segment{first: r.out.Len()})
	}
	s := r.segments[len(r.segments)-1]
	s.text = append(s.text, r.out.Bytes()...)
	s.lines++
	r.forget()
	return r.out.Bytes(), nil
}

// forget drops the oldest segments that are not needed, or too many.
func (r *Recorder) forget() {
	lines, size := 0, 0
	for _, s := range r.segments {
		lines, size = lines+s.lines, size+len(s.text)
	}
	for len(r.segments) > 1 && (lines-r.segments[0].lines >= kept || size > maxMemoryBytes) {
		lines, size = lines-r.segments[0].lines, size-len(r.segments[0].text)
		r.segments = r.segments[1:]
	}
}

// write appends to the file of the segment. What a crash leaves of the last line is left out when it is read.
func (r *Recorder) write(text []byte, full bool, d *decided) error {
	if full || r.file == nil {
		if !full {
			return nil // the file could not be made; the next segment has another one
		}
		r.closeFile()
		if err := os.MkdirAll(r.o.Dir, 0o700); err != nil {
			return err
		}
		name := fmt.Sprintf("%s%s-%d%s", filePrefix, d.seen.Now.UTC().Format("20060102T150405.000000000Z"), d.seq, fileSuffix)
		f, err := os.OpenFile(filepath.Join(r.o.Dir, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		r.file = f
		if err := prune(r.o.Dir, name); err != nil {
			return err
		}
	}
	_, err := r.file.Write(text)
	return err
}

func (r *Recorder) closeFile() {
	if r.file != nil {
		r.file.Close()
		r.file = nil
	}
}

// prune removes the oldest files of decisions until there is room for one of usual size.
func prune(dir, but string) error {
	files, err := historyFiles(dir)
	if err != nil {
		return err
	}
	total := int64(segmentBytes)
	sizes := map[string]int64{}
	for _, f := range files {
		if info, err := os.Stat(f); err == nil {
			sizes[f] = info.Size()
			total += info.Size()
		}
	}
	for _, f := range files {
		if total <= maxDiskBytes {
			return nil
		}
		if filepath.Base(f) == but {
			continue
		}
		if err := os.Remove(f); err != nil {
			return err
		}
		total -= sizes[f]
	}
	return nil
}

// texts are the segments that are kept in memory, as they are now.
func (r *Recorder) texts() (all [][]byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.segments {
		all = append(all, s.text) // what was written stays as it is; what comes is behind it
	}
	return all
}

// serveHistory gives the decisions on disk, or where there are none, in memory, as one stream.
func (r *Recorder) serveHistory(w http.ResponseWriter, _ *http.Request) {
	sources := r.sources()
	if len(sources) == 0 {
		undecided(w)
		return
	}
	w.Header().Set("Content-Type", "application/gzip")
	z, _ := gzip.NewWriterLevel(w, gzip.BestSpeed) // the level is one
	defer z.Close()
	for _, open := range sources {
		from, err := open()
		if err != nil {
			continue // it was dropped meanwhile
		}
		_, err = lines(from, func(line []byte) error {
			_, err := z.Write(append(slices.Clip(line), '\n'))
			return err
		})
		from.Close()
		if err != nil {
			r.o.Log.Warn("a history was not sent whole", "error", err)
			return
		}
	}
}

// sources are the segments to be read, the oldest first.
func (r *Recorder) sources() (all []func() (io.ReadCloser, error)) {
	if r.o.Dir != "" {
		files, _ := historyFiles(r.o.Dir) // where there are none, memory has what there is
		for _, f := range files {
			all = append(all, func() (io.ReadCloser, error) { return os.Open(f) })
		}
	}
	if len(all) > 0 {
		return all
	}
	for _, text := range r.texts() {
		all = append(all, func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(text)), nil })
	}
	return all
}

// stripped is seen without what no decision reads.
func stripped(seen controllers.Seen) controllers.Seen {
	models, pools := seen.Models, seen.Pools
	seen.Models, seen.Pools = nil, nil
	for _, m := range models {
		seen.Models = append(seen.Models, withoutExtras(m))
	}
	for _, p := range pools {
		seen.Pools = append(seen.Pools, withoutTemplate(p))
	}
	return seen
}
