package fleet

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/internal/fixture"
)

func line(t testing.TB, s worker.State) []byte {
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// crowded is a report of ten homes.
func crowded() worker.State {
	var s worker.State
	fixture.Leaves(&s, func(_ string, change func()) { change() })
	for i := range 9 {
		h := s.Homes[0]
		h.Model = fmt.Sprintf("default/model-%d", i)
		h.Message = `says "time":1, \ and }`
		s.Homes = append(s.Homes, h)
	}
	return s
}

// A fingerprint sees what sameState sees, but for the course of a load.
func TestFingerprint(t *testing.T) {
	var paths []string
	was := crowded()
	fixture.Leaves(&was, func(path string, _ func()) { paths = append(paths, path) })
	for i, path := range paths {
		is, n := crowded(), 0
		fixture.Leaves(&is, func(_ string, change func()) {
			if n == i {
				change()
			}
			n++
		})
		a, b := fingerprint(line(t, was)), fingerprint(line(t, is))
		if (a == b) != sameState(was, is) && !strings.HasSuffix(path, ".Progress") && !strings.HasPrefix(path, "State.Previous") {
			t.Errorf("with another %s the fingerprint is the same: %v", path, a == b)
		}
	}
}

// What says the same is read when its clocks are old, and never delays a change.
func TestClocks(t *testing.T) {
	worldWith(t, Options{Clocks: 3 * time.Second}, func(t *testing.T, f *Fleet, w *fake, _ Target) {
		s := crowded()
		s.Worker = "w0"
		say := func() Report {
			s.Time = time.Now()
			w.report(t, s)
			return f.Workers()[0]
		}
		first := say()
		time.Sleep(time.Second)
		s.Homes[0].IdleSeconds++
		if r := say(); !r.Connected || !r.Seen.Equal(first.Seen) || r.State.Homes[0].IdleSeconds != first.State.Homes[0].IdleSeconds {
			t.Error("read although nothing but a clock has changed")
		}
		s.Homes[0].Running++
		if r := say(); r.State.Homes[0].Running != s.Homes[0].Running {
			t.Error("a change was not read")
		}
		for range 8 { // no silence
			time.Sleep(time.Second)
			s.Homes[0].IdleSeconds++
			if r := say(); !r.Connected || time.Since(r.Seen) >= 3*time.Second {
				t.Errorf("connected %v, seen %s ago", r.Connected, time.Since(r.Seen))
			}
		}
	})
}

func FuzzFingerprint(f *testing.F) {
	f.Add(`{"time":"x\"y`)
	f.Add(`"\`)
	f.Add(string(line(f, crowded())))
	f.Fuzz(func(t *testing.T, text string) {
		is, again := fingerprint([]byte(text)), fingerprint([]byte(text))
		if is != again {
			t.Error("not the same for the same")
		}
		fingerprint([]byte(text[:len(text)/2]))
	})
}

func BenchmarkFingerprint(b *testing.B) {
	text := line(b, crowded())
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		fingerprint(text)
	}
}

func BenchmarkDecode(b *testing.B) {
	text := line(b, crowded())
	last := crowded()
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		var s worker.State
		if err := json.Unmarshal(text, &s); err != nil {
			b.Fatal(err)
		}
		s.Time = time.Now()
		sameState(last, s)
	}
}
