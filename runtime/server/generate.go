package server

import (
	"context"
	"encoding/json"
	"math"
	"math/rand/v2"
	"net/http"

	"github.com/estiba/estiba/runtime/engine"
	"github.com/estiba/estiba/runtime/grammar"
	"github.com/estiba/estiba/runtime/sampling"
	"github.com/estiba/estiba/runtime/toolcall"
)

// generation asks for texts: a chat's answer, or the continuation of prompts.
type generation struct {
	of        endpoint // chat or completions
	model     string
	dialog    dialog  // of a chat
	tools     tooling // of a chat
	structure *structure
	prompts   []prompt // of completions
	around    bool     // of completions: special tokens around a text
	echo      bool     // the prompt in front
	n         int      // texts for each prompt
	maxTokens int      // 0: as many as the context has room for; with only, none
	only      bool     // the prompt, nothing more
	minTokens int
	sampling  sampling.Params
	ignoreEnd bool    // of the model
	ends      []int32 // end tokens beside the model's
	stops     []string
	keepStop  bool // the stop string is part of the text
	special   bool // special tokens are part of the text
	stream    bool
	usage     bool // a last chunk with the usage
	usages    bool // and the usage so far in every chunk
	energy    bool // the usage has joules
}

const (
	maxTexts = 128 // of one request
	maxStops = 16
	maxTop   = 20 // logprobs of other tokens
)

func parseChat(body []byte) (asked, *apiError) {
	f := parseFields(chat, body)
	g := &generation{of: chat, dialog: f.dialog()}
	if raw, ok := f.take("documents"); ok { // the name of a template's variable, too
		var list []map[string]json.RawMessage
		if json.Unmarshal(raw, &list) != nil {
			f.fail("documents", "documents must be a list of objects")
		}
		g.dialog.kwargs = g.dialog.kwargs.set("documents", raw)
	}
	if effort := f.text("reasoning_effort"); effort != "" {
		g.dialog.kwargs = g.dialog.kwargs.set("reasoning_effort", quoted(effort))
	}
	g.tools = f.tooling()
	g.dialog.tools, g.dialog.wholeTools = g.tools.shown, g.tools.whole
	g.common(f)
	if mode := g.tools.choice.Mode; g.structure != nil && (mode == toolcall.Required || mode == toolcall.Named) {
		f.fail(g.structure.param, "%s and a tool_choice that requires a call exclude each other", g.structure.param)
	}
	g.maxTokens = f.integer("max_tokens", 1, math.MaxInt32, 0)
	g.maxTokens = f.integer("max_completion_tokens", 1, math.MaxInt32, g.maxTokens)
	if g.maxTokens > 0 {
		g.bounded(f)
	}
	g.sampling.Logprobs = f.boolean("logprobs", false)
	g.sampling.TopLogprobs = f.integer("top_logprobs", 0, maxTop, 0)
	if g.sampling.TopLogprobs > 0 && !g.sampling.Logprobs {
		f.fail("top_logprobs", "top_logprobs needs logprobs to be true")
	}
	return g, f.finish()
}

func parseCompletion(body []byte) (asked, *apiError) {
	f := parseFields(completions, body)
	g := &generation{of: completions, prompts: f.prompts("prompt", maxTexts), around: f.boolean("add_special_tokens", true)}
	g.common(f)
	g.echo = f.boolean("echo", false)
	least := 1
	if g.echo {
		least = 0
	}
	g.maxTokens = f.integer("max_tokens", least, math.MaxInt32, 16) // OpenAI's default here
	if g.only = g.maxTokens == 0; !g.only {
		g.bounded(f)
	}
	if top := f.integer("logprobs", 0, maxTop, -1); top >= 0 {
		g.sampling.Logprobs, g.sampling.TopLogprobs = true, top
	}
	if len(g.prompts)*g.n > maxTexts {
		f.fail("n", "n times the number of prompts must be at most %d", maxTexts)
	}
	return g, f.finish()
}

func (g *generation) bounded(f *fields) {
	if g.minTokens > g.maxTokens {
		f.fail("min_tokens", "min_tokens must be at most max_tokens, which is %d", g.maxTokens)
	}
}

func (g *generation) common(f *fields) {
	g.model = f.modelName()
	f.ignored()
	g.n = f.integer("n", 1, maxTexts, 1)
	g.minTokens = f.integer("min_tokens", 0, math.MaxInt32, 0)
	p := &g.sampling
	p.MinTokens = g.minTokens
	p.Temperature = f.number("temperature", 0, 2, 1)
	p.TopP = f.number("top_p", 0, 1, 1)
	if p.TopP == 0 {
		p.TopK = 1 // nothing but the likeliest
	}
	if k := f.integer("top_k", -1, math.MaxInt32, 0); k > 0 && p.TopP > 0 {
		p.TopK = k
	}
	p.MinP = f.number("min_p", 0, 1, 0)
	p.Presence = f.number("presence_penalty", -2, 2, 0)
	p.Frequency = f.number("frequency_penalty", -2, 2, 0)
	p.Repetition = f.number("repetition_penalty", 0.01, 10, 1)
	p.Seed = rand.Uint64()
	if raw, ok := f.take("seed"); ok {
		var x int64
		if json.Unmarshal(raw, &x) != nil {
			f.fail("seed", "seed must be a whole number")
		}
		p.Seed = uint64(x)
	}
	p.Bias = f.bias()
	g.ignoreEnd = f.boolean("ignore_eos", false)
	g.ends = f.ids("stop_token_ids")
	g.stops = f.stops()
	if g.structure = f.structure(); g.structure != nil && (g.ignoreEnd || g.minTokens > 0) {
		f.fail(g.structure.param, "%s excludes ignore_eos and min_tokens: its text ends where it must", g.structure.param)
	}
	g.keepStop = f.boolean("include_stop_str_in_output", false)
	g.special = !f.boolean("skip_special_tokens", true)
	g.energy = f.boolean("include_energy", false)
	g.stream = f.boolean("stream", false)
	if raw, ok := f.take("stream_options"); ok {
		if !g.stream {
			f.fail("stream_options", "stream_options needs stream to be true")
		}
		part, _ := f.within("stream_options", raw)
		g.usage = part.boolean("include_usage", false)
		g.usages = part.boolean("continuous_usage_stats", false) && g.usage
		part.boolean("include_obfuscation", false)
		part.rest()
		f.join(part)
	}
}

// ignored are checked, though they change no answer.
func (f *fields) ignored() {
	f.text("user")
	if f.of&texts == 0 {
		return
	}
	if raw, ok := f.take("metadata"); ok {
		part, _ := f.within("metadata", raw)
		f.join(part)
	}
}

func (f *fields) modelName() string {
	name := f.text("model")
	if name == "" {
		f.fail("model", "model is required: the name of one of GET /v1/models")
	}
	return name
}

func (g *generation) modelName() string { return g.model }

func (g *generation) answer(ctx context.Context, w http.ResponseWriter, c call) *apiError {
	texts, e := g.start(ctx, c)
	if e != nil {
		return e
	}
	a := newAnswer(g)
	if g.energy && c.JoulesPerToken != nil {
		a.perToken = c.JoulesPerToken
	}
	write := a.collect
	if g.stream {
		write = a.stream
	}
	if e = write(ctx, w, texts); e != nil {
		e.elsewhere = e.elsewhere && len(texts) == 1 // of several, others may have begun
	}
	return e
}

// start submits all of a request's prompts, or none.
func (g *generation) start(ctx context.Context, c call) ([]*text, *apiError) {
	if c.Tokenizer == nil {
		return nil, noTokenizer(g.model)
	}
	if e := g.known(c.Tokenizer.Size()); e != nil {
		return nil, e
	}
	format := toolcall.Detect(c.template().Source())
	must, e := g.grammar(format)
	if e != nil {
		return nil, e
	}
	prompts, e := g.encode(c)
	if e != nil {
		return nil, e
	}
	var list []*text
	for i, ids := range prompts {
		for choice := range g.n {
			// Of its own, so that a text that is cut at a stop string ends without its neighbours.
			own, cancel := context.WithCancel(ctx)
			params := g.sampling
			params.Seed += uint64(choice) * 0x9e3779b97f4a7c15 // far from other requests' seeds, which people count up
			if must != nil {
				params.Constraint = grammar.NewMatcher(must, c.Vocabulary())
			}
			events, err := c.Engine.Submit(own, engine.Request{
				Replica: c.Replica, Tenant: c.tenant, Prompt: ids, MaxTokens: g.maxTokens, Sampling: params,
				Stop: g.ends, IgnoreStop: g.ignoreEnd, PromptOnly: g.only, PromptLogprobs: g.echo && g.sampling.Logprobs,
			})
			if err != nil { // those before it end with ctx
				cancel()
				e := submitError(err)
				if e.Param == "prompt" && g.of == chat {
					e.Param = "messages"
				}
				return nil, e
			}
			list = append(list, g.text(events, cancel, c, format, i, choice, ids))
		}
	}
	return list, nil
}

// text is the one of a prompt's choice.
func (g *generation) text(events <-chan engine.Event, cancel context.CancelFunc, c call, format toolcall.Format, i, choice int, ids []int32) *text {
	t := newText(events, cancel, c, ids, g)
	t.counts = choice == 0
	if t.asks = "tools"; g.structure != nil {
		t.asks = g.structure.param
	}
	if g.echo {
		t.echo = &echo{text: g.prompts[i].text, ids: ids}
		if g.prompts[i].ids != nil {
			t.echo.text = c.Tokenizer.Decode(ids, g.special)
		}
	}
	if g.of == chat && (g.tools.offered() || format.Always()) {
		t.calls = format.Parser(g.tools.tools, rand.Uint64)
		t.single = !g.tools.choice.Parallel || g.tools.choice.Mode == toolcall.Named
		t.decode = c.Tokenizer.Stream(true, ids...) // markers of calls may be special tokens
	}
	return t
}

// known refuses token ids that the model does not have.
func (g *generation) known(vocabulary int) *apiError {
	for id := range g.sampling.Bias {
		if int(id) >= vocabulary {
			return invalid("logit_bias", "The model has %d tokens; %d is none of them.", vocabulary, id)
		}
	}
	for _, id := range g.ends {
		if id < 0 || int(id) >= vocabulary {
			return invalid("stop_token_ids", "The model has %d tokens; %d is none of them.", vocabulary, id)
		}
	}
	return nil
}

func noTokenizer(model string) *apiError {
	return invalid("model", "The model %q has no tokenizer files, so it reads and writes no text.", model)
}

// encode turns a request's prompts into ids.
func (g *generation) encode(c call) ([][]int32, *apiError) {
	if g.of == chat {
		ids, e := g.dialog.encode(c)
		return [][]int32{ids}, e
	}
	return encodeAll(c.Loaded, g.prompts, g.around), nil
}

func encodeAll(l Loaded, prompts []prompt, around bool) [][]int32 {
	all := make([][]int32, len(prompts))
	for i, p := range prompts {
		if all[i] = p.ids; p.ids == nil {
			all[i] = l.Tokenizer.Encode(p.text, around)
		}
	}
	return all
}
