package residency

import (
	"math"
	"time"
)

// Share is an exponentially weighted moving average of the share of time in which
// something was so: a model's steps ran on its device (its load), or it had requests
// (it was awake). What happened one time constant ago counts e times less than what
// happens now. A value of it is as of a time; Add gives the next one.
type Share struct {
	Value float64 // 0 to 1
	At    time.Time
}

// Time constants of what a worker reports.
const (
	// LoadOver smooths the pauses between a model's requests, and still follows the day.
	LoadOver = 5 * time.Minute
	// AwakeOver is longer, since it says how often a model that may sleep is woken.
	AwakeOver = time.Hour
	// NewAwake is where that begins for a model which nobody knows yet.
	NewAwake = 0.25
)

// Add is the average at now, when it has been so for that long since s.At, evenly
// spread. With a time constant of 5 min:
//
//	a model that takes all of a device from now on: 0.63 after 5 min, 0.95 after 15 min
//	one that took a quarter of it for long, and then nothing: 0.25 / e = 0.092 after 5 min
//	3 s of work within one second (a step that took long): 0.00998 after it, as 3 s of work within three seconds: 0.00995
func (s Share) Add(so time.Duration, now time.Time, over time.Duration) Share {
	if s.At.IsZero() || now.Before(s.At) {
		s.At = now
	}
	x := float64(now.Sub(s.At)) / float64(over)
	weight := 1 / float64(over) // of what was so, per nanosecond; in the limit of no time
	if x > 0 {
		weight = -math.Expm1(-x) / float64(now.Sub(s.At))
	}
	value := s.Value*math.Exp(-x) + float64(max(so, 0))*weight
	return Share{Value: min(value, 1), At: now}
}
