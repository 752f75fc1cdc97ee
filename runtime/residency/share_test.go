package residency

import (
	"math"
	"testing"
	"time"
)

func TestShare(t *testing.T) {
	const over = 5 * time.Minute
	for name, c := range map[string]struct {
		from float64
		so   time.Duration
		in   time.Duration
		want float64
	}{
		"all of it, for one time constant":       {0, 5 * time.Minute, 5 * time.Minute, 1 - 1/math.E},
		"all of it, for three":                   {0, 15 * time.Minute, 15 * time.Minute, 0.9502},
		"nothing, for one":                       {0.25, 0, 5 * time.Minute, 0.25 / math.E},
		"as before":                              {0.25, 15 * time.Second, time.Minute, 0.25},
		"3 s of work in one second":              {0, 3 * time.Second, time.Second, 0.00998},
		"3 s of work in three":                   {0, 3 * time.Second, 3 * time.Second, 0.00995},
		"3 s of work in no time":                 {0, 3 * time.Second, 0, 0.01},
		"no time":                                {0.5, 0, 0, 0.5},
		"never more than all":                    {0.9, time.Hour, time.Second, 1},
		"a clock that goes back changes nothing": {0.5, 0, -time.Hour, 0.5},
		"a counter that goes back, too":          {0.5, -time.Hour, 0, 0.5},
	} {
		got := Share{Value: c.from, At: now}.Add(c.so, now.Add(c.in), over)
		if math.Abs(got.Value-c.want) > 1e-4 || !got.At.Equal(now.Add(c.in)) {
			t.Errorf("%s: %v, want %v", name, got.Value, c.want)
		}
	}
	if got := (Share{}).Add(0, now, over); got.Value != 0 || !got.At.Equal(now) {
		t.Errorf("the first look: %+v", got)
	}
	// However often one looks at an even load, it comes to the same.
	seldom := Share{At: now}.Add(time.Minute, now.Add(4*time.Minute), over)
	often := Share{At: now}
	for i := range 240 {
		often = often.Add(time.Second/4, now.Add(time.Duration(i+1)*time.Second), over)
	}
	if math.Abs(seldom.Value-often.Value) > 1e-9 {
		t.Errorf("%v once, %v in 240 looks", seldom.Value, often.Value)
	}
}
