package cpu

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestPanicOfAHelper comes out where the work was asked for, when nobody works any more,
// and the pool goes on.
func TestPanicOfAHelper(t *testing.T) {
	p := newPool(4)
	defer p.close()
	helpers := 0
	for range 1000 {
		var working atomic.Int64
		got := func() (got any) {
			defer func() { got = recover() }()
			p.each(64, 1, func(from, to int) {
				working.Add(1)
				defer working.Add(-1)
				if from > 0 {
					panic("index out of range")
				}
				time.Sleep(10 * time.Microsecond) // so that helpers get some
			})
			return nil
		}()
		err, ok := got.(*panicked)
		if !ok || err.Error() != "index out of range" {
			t.Fatalf("%v", got)
		}
		if working.Load() != 0 {
			t.Fatal("somebody still works")
		}
		if !strings.Contains(string(err.Stack()), "TestPanicOfAHelper(") { // the test's own frame
			helpers++
		}
	}
	if helpers == 0 {
		t.Error("no helper panicked")
	}
	var done atomic.Int64
	if err := p.each(100, 1, func(from, to int) { done.Add(int64(to - from)) }); err != nil || done.Load() != 100 {
		t.Errorf("%d done, %v", done.Load(), err)
	}
}
