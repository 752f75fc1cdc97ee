package controllers

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	// writers is how many requests are on their way to the API server at a time.
	writers = 8
	// writeTimeout bounds one of them.
	writeTimeout = 10 * time.Second
	// writing is the most that statuses delay the next decision by.
	writing = time.Second
)

// write is one request to the API server.
type write struct {
	last time.Time // when the same was last tried: who has waited longest comes first
	// send may run beside others. done belongs to the loop, and runs once all have ended.
	send func(context.Context) error
	done func(error)
}

// carry sends writes in their order, several at a time. It begins none after a
// time, unless that is zero, nor after as many have failed as are sent at a
// time. It returns how many were begun, and the errors of those that failed; an
// object that is gone needs no write.
func carry(ctx context.Context, writes []write, until time.Time) (begun int, failed []error) {
	var next, failures atomic.Int64
	results := make([]error, len(writes))
	one := func() bool {
		if failures.Load() >= writers || !until.IsZero() && time.Now().After(until) {
			return false
		}
		i := int(next.Add(1)) - 1
		if i >= len(writes) {
			return false
		}
		ctx, cancel := context.WithTimeout(ctx, writeTimeout)
		defer cancel()
		if results[i] = writes[i].send(ctx); client.IgnoreNotFound(results[i]) != nil {
			failures.Add(1)
		}
		return true
	}
	var all sync.WaitGroup
	for range min(writers, len(writes)) {
		all.Go(func() {
			for one() {
			}
		})
	}
	all.Wait()
	begun = min(int(next.Load()), len(writes))
	for i, w := range writes[:begun] {
		if w.done(results[i]); client.IgnoreNotFound(results[i]) != nil {
			failed = append(failed, results[i])
		}
	}
	return begun, failed
}
