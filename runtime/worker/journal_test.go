package worker

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	api "github.com/estiba/estiba/api/worker"
)

// A process that is killed leaves word of who was loading and who had requests,
// however soon after that it died; one that ends by itself leaves none.
func TestJournal(t *testing.T) {
	dir := t.TempDir()
	path, stolen := filepath.Join(dir, "at-work.json"), filepath.Join(dir, "killed.json")
	synctest.Test(t, func(t *testing.T) {
		o := newWorld(t)
		o.loadTime = time.Minute
		w, end := o.worker(t, func(options *Options) { options.Journal = path })
		kill := func() *api.Previous { // what the next process would read now
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(stolen, text, 0o600); err != nil {
				t.Fatal(err)
			}
			j, previous, err := openJournal(stolen, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			j.file.Close()
			return previous
		}
		want := func(when string, work ...api.AtWork) {
			t.Helper()
			if diff := cmp.Diff(&api.Previous{Instance: w.instance, AtWork: work}, kill()); diff != "" {
				t.Errorf("%s (-want +got):\n%s", when, diff)
			}
		}
		want("nothing is assigned")
		a, b := o.home("a", 1<<20), o.home("b", 1<<20, asleep)
		assign(t, w, a, b)
		time.Sleep(10 * time.Second)
		want("it loads", api.AtWork{Model: a.Model, Revision: a.Revision})
		time.Sleep(2 * time.Minute)
		want("it is resident")
		loadedAt := w.homes[a.Model].loadedAt
		_, done, err := w.Use(context.Background(), a.Model)
		if err != nil {
			t.Fatal(err)
		}
		want("it has a request", api.AtWork{Model: a.Model, Revision: a.Revision, ResidentSeconds: time.Since(loadedAt).Seconds()})
		done()
		want("the request has ended")
		end()
		if previous := kill(); previous != nil {
			t.Errorf("the worker ended by itself and left %+v", previous)
		}
	})
}

// What is no journal tells of no death, and is written over.
func TestJournalOfAnotherKind(t *testing.T) {
	for _, text := range []string{"", "{", "[]", `{"instance":7}`, `{"atWork":[{"model":"a"}]}`} {
		path := filepath.Join(t.TempDir(), "at-work.json")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		j, previous, err := openJournal(path, time.Now())
		if err != nil || previous != nil {
			t.Errorf("%q: %+v, %v", text, previous, err)
			continue
		}
		if err := j.write(entry{Instance: "next"}); err != nil {
			t.Error(err)
		}
		j.file.Close()
		if _, previous, _ = openJournal(path, time.Now()); previous == nil || previous.Instance != "next" {
			t.Errorf("%q: read back %+v", text, previous)
		}
	}
}

// A note that could not be written is written the next time.
func TestJournalAfterAFullDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "at-work.json")
	j, _, err := openJournal(path, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	e := entry{Instance: "i"}
	j.file.Close()
	if err := j.write(e); err == nil {
		t.Error("written to a closed file")
	}
	if j.file, err = os.OpenFile(path, os.O_RDWR, 0); err != nil {
		t.Fatal(err)
	}
	defer j.file.Close()
	if err := j.write(e); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(path); err != nil || len(text) == 0 {
		t.Errorf("%q, %v", text, err)
	}
}
