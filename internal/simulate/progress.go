package simulate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// tellEvery is how often a simulation that takes long says where it is.
const tellEvery = 2 * time.Second

// progress of a simulation.
type progress struct {
	w    io.Writer
	last time.Time
}

// tell writes a line if none was written for a while. The first is late: what is short says nothing.
func (p *progress) tell(format string, args ...any) {
	now := time.Now()
	if p.last.IsZero() {
		p.last = now
	}
	if now.Sub(p.last) < tellEvery {
		return
	}
	p.last = now
	fmt.Fprintf(p.w, format+"\n", args...)
}

// interrupted is context.Canceled in the words of who did it.
type interrupted struct{}

func (interrupted) Error() string { return "interrupted" }
func (interrupted) Unwrap() error { return context.Canceled }

// ended says of an error that the end of ctx has caused that somebody ended it.
func ended(ctx context.Context, err error) error {
	if err != nil && errors.Is(ctx.Err(), context.Canceled) {
		return interrupted{}
	}
	return err
}

// someFit reports where not one of the pods with a GPU has room on any of the nodes while they are empty.
func someFit(nodes []Node, pods []Pod) error {
	tried := map[Pod]bool{}
	kinds := map[Node]*machine{}
	for _, n := range nodes {
		n.Name = ""
		kinds[n] = newMachine(n)
	}
	for _, p := range pods {
		p.Name = ""
		if tried[p] || p.GPUs == 0 {
			continue
		}
		tried[p] = true
		for _, m := range kinds {
			if m.fits(p) {
				return nil
			}
		}
	}
	return errors.New("no pod that asks for a GPU fits any node, not even an empty one: compare their processors, memory, GPUs and the kinds of these")
}
