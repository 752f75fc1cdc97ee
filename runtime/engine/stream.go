package engine

import (
	"context"
	"sync"
)

// stream hands events to one reader and never blocks the sender. What the
// reader is behind with is kept, at most one event for each token of its text.
type stream struct {
	ctx context.Context
	out chan Event

	mu      sync.Mutex
	behind  []Event
	pumping bool // a goroutine hands on what is behind, and closes out if need be
	closed  bool
}

func newStream(ctx context.Context) *stream {
	return &stream{ctx: ctx, out: make(chan Event, 32)}
}

func (s *stream) send(ev Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.pumping {
		select {
		case s.out <- ev:
			return
		default:
			s.pumping = true
			go s.pump()
		}
	}
	s.behind = append(s.behind, ev)
}

// close says that nothing more will be sent.
func (s *stream) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if !s.pumping {
		close(s.out)
	}
}

// pump ends when the reader has caught up or has gone.
func (s *stream) pump() {
	for {
		s.mu.Lock()
		if len(s.behind) == 0 {
			s.pumping, s.behind = false, nil
			if s.closed {
				close(s.out)
			}
			s.mu.Unlock()
			return
		}
		ev := s.behind[0]
		s.behind = s.behind[1:]
		s.mu.Unlock()
		select {
		case s.out <- ev:
		case <-s.ctx.Done():
		}
	}
}
