package controllers

import (
	"fmt"
	"strings"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/internal/policy/packing"
	"github.com/estiba/estiba/internal/terminal"
)

// Text is the explanation for a terminal. Commands are left out where there is no cluster.
func (e Explanation) Text(commands bool) string {
	t := &text{}
	t.line("%s", e.Answer)
	t.line("")
	t.topic("reason", "%s", e.Reason)
	if e.Reason == ReasonNotFound {
		return terminal.Line(e.Answer) + "\n"
	}
	for _, n := range e.Needs {
		t.topic("needs", "%s", n)
	}
	for _, s := range e.Homes {
		if e.DryRun && s.State == v1alpha1.PlacementAssigned {
			s.State = newHome
		}
		t.topic("home", "%s", s.line())
	}
	for _, r := range e.Refused {
		t.topic("devices", "%s", r)
	}
	if e.InTheWay != nil {
		t.topic("in the way", "%s", e.InTheWay)
	}
	if e.Moves != nil {
		t.topic("moves", "%s", e.Moves)
	}
	for _, g := range e.Growth {
		t.topic("growth", "%s", g)
	}
	for _, s := range e.Times {
		t.topic("time", "%s", s)
	}
	for _, s := range e.Effects {
		t.topic("effects", "%s", s)
	}
	t.actions(e.Do, commands)
	return t.String()
}

// newHome is the state of a home that is not assigned, but would be.
const newHome v1alpha1.PlacementState = "new"

// text is lines with topics in front.
type text struct {
	strings.Builder
	last string
}

func (t *text) line(format string, args ...any) {
	t.WriteString(terminal.Line(fmt.Sprintf(format, args...)) + "\n")
}

// topic writes a line; of several with one topic only the first names it.
func (t *text) topic(name, format string, args ...any) {
	show := name
	if t.last == name {
		show = ""
	}
	t.last = name
	t.line("  %-11s"+format, append([]any{show}, args...)...)
}

func (t *text) actions(all []Action, commands bool) {
	if len(all) == 0 {
		return
	}
	t.line("")
	t.line("What you can do:")
	for _, a := range all {
		t.line("  - %s", a.What)
		if commands && a.Command != "" {
			t.line("      %s", a.Command)
		}
	}
}

func (n Need) String() string {
	how := "estimated"
	switch {
	case n.Measured:
		how = "measured"
	case n.Given:
		return fmt.Sprintf("%s on a device of pool %s (as given)", packing.Size(n.Bytes), n.Pool)
	}
	cut := ""
	if n.AskedTokens > 0 {
		cut = fmt.Sprintf("; of the %d tokens of spec.context.maxTokens, the model's own context allows %d", n.AskedTokens, n.MaxTokens)
	}
	return fmt.Sprintf("%s on a device of pool %s: weights %s, KV floor %s, workspace %s (%s)%s",
		packing.Size(n.Bytes), n.Pool, packing.Size(n.Weights), packing.Size(n.KVFloor), packing.Size(n.Workspace), how, cut)
}

func (s Stay) line() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s", s.at(), s.state())
	if s.Progress > 0 && s.Progress < 1 {
		fmt.Fprintf(&b, " (%d %%)", int(s.Progress*100))
	}
	if s.Bytes > 0 {
		fmt.Fprintf(&b, ", %s", packing.Size(s.Bytes))
	}
	if s.ResidentSeconds > 0 {
		fmt.Fprintf(&b, ", for %s", span(s.ResidentSeconds))
	}
	if n := s.Running + s.Waiting; n > 0 {
		fmt.Fprintf(&b, ", %s", count(n, "request"))
	}
	if s.Message != "" {
		fmt.Fprintf(&b, "; %s", strings.TrimSuffix(s.Message, "."))
	} else if s.Reason != "" {
		fmt.Fprintf(&b, "; chosen: %s", s.chosen())
	}
	return b.String()
}

// chosen is why the home was chosen: what was left then is no longer what is left now.
func (s Stay) chosen() string {
	reason := strings.TrimSuffix(s.Reason, ".")
	if s.State != newHome && strings.HasSuffix(reason, " left") {
		reason += " then"
	}
	return reason
}

func (r Refused) String() string {
	var at []string
	for _, b := range r.Examples {
		at = append(at, b.String())
	}
	more := ""
	if extra := r.Devices - len(r.Examples); extra > 0 {
		more = fmt.Sprintf(" and %d more", extra)
	}
	return fmt.Sprintf("%d %s: %s%s", r.Devices, r.Reason, strings.Join(at, ", "), more)
}

func (b Berth) String() string {
	switch {
	case b.Capacity == 0 && b.Detail != "":
		return fmt.Sprintf("%s (%s)", b.at(), b.Detail)
	case b.Capacity == 0:
		return b.at()
	}
	s := fmt.Sprintf("%s (%s of %s free", b.at(), packing.Size(b.Free), packing.Size(b.Capacity))
	if b.Detail != "" {
		s += "; " + b.Detail
	}
	return s + ")"
}

func (r InTheWay) String() string {
	var all []string
	for _, s := range r.Go {
		what := packing.Size(s.Bytes) + fmt.Sprintf(", priority %d", s.Priority)
		if s.Pinned {
			what += ", pinned"
		}
		all = append(all, fmt.Sprintf("%s (%s)", s.Model, what))
	}
	return fmt.Sprintf("on %s/%s, %s would have to go", r.Worker, r.Device, list(all))
}

func (r Repacking) String() string {
	var all []string
	for _, v := range r.Moves {
		all = append(all, fmt.Sprintf("%s (%s) from %s to %s", v.Model, packing.Size(v.Bytes), v.From, v.To))
	}
	left := fmt.Sprintf("%d of %s %s left this hour", r.Left, count(r.PerHour, "move"), verb(r.Left, "is", "are"))
	switch {
	case r.UnderWay && len(r.Leave) > 0:
		return fmt.Sprintf("%s %s up %s for it", list(r.Leave), verb(len(r.Leave), "gives", "give"), verb(len(r.Leave), "its home", "their homes"))
	case r.UnderWay && len(all) == 0:
		return "under way for it: what was there leaves its device"
	case r.UnderWay:
		return "under way for it: " + list(all)
	case r.Helps && r.Spent:
		return fmt.Sprintf("would help, and the budget is spent: %s; %s", list(all), left)
	case r.Helps:
		return fmt.Sprintf("would help: %s; %s", list(all), left)
	}
	return fmt.Sprintf("would not help: moving up to %s makes no room for it", count(r.Most, "model"))
}

func (g Growth) String() string {
	has := fmt.Sprintf("pool %s has %d of at most %s", g.Pool, g.Workers, count(g.Max, "worker"))
	switch {
	case g.State == GrowthSole:
		return fmt.Sprintf("%s; there cannot be another one: %s", has, g.Message)
	case g.State == GrowthDivided:
		return fmt.Sprintf("%s; another one would not help: %s", has, g.Message)
	case !g.Helps && g.Device > 0:
		return fmt.Sprintf("%s; another one would not help, its devices have %s", has, packing.Size(g.Device))
	case g.State == GrowthFull && g.Device == 0:
		return has + "; nobody has seen how large a device of it is"
	case g.State == GrowthFull:
		return fmt.Sprintf("%s; another one, with %s, would hold it", has, packing.Size(g.Device))
	case g.State == GrowthNode:
		return fmt.Sprintf("%s; pod %s waits for a node: %s", has, g.Pod, sentence(g.Message))
	case g.State == GrowthPod:
		return fmt.Sprintf("%s; pod %s does not start: %s", has, g.Pod, sentence(g.Message))
	case g.State == GrowthStarting:
		return fmt.Sprintf("%s; %s is starting", has, g.Pod)
	case g.State == GrowthBlocked:
		return fmt.Sprintf("%s, and cannot make another one: %s", has, sentence(g.Message))
	case g.State == GrowthBarred:
		return fmt.Sprintf("%s, and makes none: %s", has, sentence(g.Message))
	}
	return has + "; another one comes"
}

func (s Span) String() string { return fmt.Sprintf("%s %s (%s)", s.What, span(s.Seconds), s.Because) }
