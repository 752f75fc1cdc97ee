package worker

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"

	api "github.com/estiba/estiba/api/worker"
)

// journal is a file that outlives the process: what it was doing at each moment,
// for the process that comes after it in the same place. A request may end the
// process sooner than any report of it leaves. It is written in place, within one
// page, so that a process that is killed leaves it whole; a machine that dies may
// not, and took nobody's fault with it.
type journal struct {
	file *os.File
	last []byte
}

// entry is what the file holds.
type entry struct {
	Instance string   `json:"instance"`
	AtWork   []atWork `json:"atWork"`
}

type atWork struct {
	Model    string    `json:"model"`
	Revision string    `json:"revision"`
	Since    time.Time `json:"since,omitzero"` // its load; zero: it is loading
}

// maxJournal bounds what is read back: some thousand models at work at once.
const maxJournal = 1 << 20

// openJournal reads what the process before this one left, if it had work in
// hand, and writes over it from then on.
func openJournal(path string, now time.Time) (*journal, *api.Previous, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("open journal: %w", err)
	}
	var left entry
	err = json.NewDecoder(io.LimitReader(file, maxJournal)).Decode(&left)
	if err != nil || left.Instance == "" {
		return &journal{file: file}, nil, nil // new, or no journal: it tells of no death
	}
	previous := &api.Previous{Instance: left.Instance}
	for _, a := range left.AtWork {
		w := api.AtWork{Model: a.Model, Revision: a.Revision}
		if !a.Since.IsZero() {
			w.ResidentSeconds = max(now.Sub(a.Since).Seconds(), 0)
		}
		previous.AtWork = append(previous.AtWork, w)
	}
	return &journal{file: file}, previous, nil
}

// write notes what the process does now.
func (j *journal) write(e entry) error {
	text, err := json.Marshal(e)
	if err != nil || bytes.Equal(text, j.last) {
		return err
	}
	if _, err := j.file.WriteAt(append(text, '\n'), 0); err != nil { // what was longer is behind the end of the value
		return err
	}
	j.last = text
	return nil
}

// openJournal opens the worker's journal, if it has one.
func (w *Worker) openJournal() error {
	if w.o.Journal == "" {
		return nil
	}
	j, previous, err := openJournal(w.o.Journal, time.Now())
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w: the folder must be one that the worker may write", err)
	}
	if err != nil {
		return err
	}
	w.journal, w.previous = j, previous
	return j.write(entry{Instance: w.instance})
}

// note writes down which models are loading or have requests. w.mu is held.
func (w *Worker) note() {
	if w.journal == nil {
		return
	}
	e := entry{Instance: w.instance}
	for h := range w.all() {
		switch {
		case h.users > 0:
			e.AtWork = append(e.AtWork, atWork{h.want.Model, h.key.revision, h.loadedAt})
		case h.phase == api.PhaseLoading:
			e.AtWork = append(e.AtWork, atWork{Model: h.want.Model, Revision: h.key.revision})
		}
	}
	slices.SortFunc(e.AtWork, func(a, b atWork) int {
		return cmp.Or(cmp.Compare(a.Model, b.Model), cmp.Compare(a.Revision, b.Revision))
	})
	if err := w.journal.write(e); err != nil {
		w.log.Error("journal not written", "error", err)
	}
}

// closeJournal leaves nothing to tell: the process ends by itself.
func (w *Worker) closeJournal() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.journal == nil {
		return
	}
	if err := errors.Join(w.journal.write(entry{}), w.journal.file.Close()); err != nil {
		w.log.Error("journal not written", "error", err)
	}
	w.journal = nil
}
