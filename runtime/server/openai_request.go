package server

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"

	"github.com/estiba/estiba/runtime/sampling"
	"github.com/estiba/estiba/runtime/template"
)

// request is what a client asks for, checked.
type request struct {
	chat       bool
	model      string
	messages   []template.Message // of a chat
	prompts    []prompt           // of a completion
	maxTokens  int                // 0: as many as the context has room for
	sampling   sampling.Params
	ignoreStop bool
	stop       []string
	stream     bool
	usage      bool // a last chunk with the usage
}

// prompt is text, or ids if those are not nil.
type prompt struct {
	text string
	ids  []int32
}

const (
	maxPrompts = 32 // of one completion
	maxStops   = 16
	maxTop     = 20 // logprobs of other tokens
)

// harmless fields do not change what is answered.
var harmless = []string{
	"user", "store", "metadata", "service_tier", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "parallel_tool_calls",
}

// neutral fields are refused with any value but these: they would change the answer
// in a way that is not there.
var neutral = map[string][]string{
	"n":                     {"1"},
	"best_of":               {"1"},
	"echo":                  {"false"},
	"suffix":                {`""`},
	"tools":                 {"[]"},
	"functions":             {"[]"},
	"tool_choice":           {`"none"`, `"auto"`},
	"function_call":         {`"none"`, `"auto"`},
	"response_format":       {`{"type":"text"}`},
	"modalities":            {`["text"]`},
	"min_tokens":            {"0"},
	"use_beam_search":       {"false"},
	"skip_special_tokens":   {"true"},
	"add_generation_prompt": {"true"},
}

func parseChat(body []byte) (*request, *apiError) {
	f := parseFields(body)
	r := &request{chat: true}
	r.messages = f.messages()
	r.common(f)
	r.maxTokens = f.integer("max_tokens", 1, math.MaxInt32, 0)
	r.maxTokens = f.integer("max_completion_tokens", 1, math.MaxInt32, r.maxTokens)
	r.sampling.Logprobs = f.boolean("logprobs")
	r.sampling.TopLogprobs = f.integer("top_logprobs", 0, maxTop, 0)
	if r.sampling.TopLogprobs > 0 && !r.sampling.Logprobs {
		f.fail("top_logprobs", "top_logprobs needs logprobs to be true")
	}
	return r, f.finish()
}

func parseCompletion(body []byte) (*request, *apiError) {
	f := parseFields(body)
	r := &request{}
	r.prompts = f.prompts()
	r.common(f)
	r.maxTokens = f.integer("max_tokens", 1, math.MaxInt32, 16) // OpenAI's default here
	if top := f.integer("logprobs", 0, maxTop, -1); top >= 0 {
		r.sampling.Logprobs, r.sampling.TopLogprobs = true, top
	}
	return r, f.finish()
}

func (r *request) common(f *fields) {
	if r.model = f.text("model"); r.model == "" {
		f.fail("model", "model is required: the name of one of GET /v1/models")
	}
	p := &r.sampling
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
	p.Seed = f.seed()
	p.Bias = f.bias()
	r.ignoreStop = f.boolean("ignore_eos")
	r.stop = f.stops()
	r.stream = f.boolean("stream")
	if raw, ok := f.take("stream_options"); ok {
		var o struct {
			IncludeUsage bool `json:"include_usage"`
		}
		if err := json.Unmarshal(raw, &o); err != nil {
			f.fail("stream_options", "stream_options must be an object such as {\"include_usage\": true}")
		}
		r.usage = o.IncludeUsage
	}
}

// fields are a body's, each taken once; the first that is wrong is the error.
type fields struct {
	left map[string]json.RawMessage
	err  *apiError
}

func parseFields(body []byte) *fields {
	f := &fields{}
	if err := json.Unmarshal(body, &f.left); err != nil || f.left == nil {
		why := "it is not an object"
		if err != nil {
			why = err.Error()
		}
		f.fail("", "The body must be a JSON object: %s", why)
	}
	return f
}

func (f *fields) fail(param, format string, args ...any) {
	if f.err == nil {
		f.err = invalid(param, format+".", args...) // it begins with the parameter, as clients spell it
	}
}

// take is a field's value; false if it is absent or null.
func (f *fields) take(name string) (json.RawMessage, bool) {
	raw, ok := f.left[name]
	delete(f.left, name)
	return raw, ok && string(raw) != "null"
}

// finish refuses what nobody has taken.
func (f *fields) finish() *apiError {
	for _, name := range slices.Sorted(maps.Keys(f.left)) {
		raw := f.left[name]
		if string(raw) == "null" || slices.Contains(harmless, name) {
			continue
		}
		var compact bytes.Buffer
		values, known := neutral[name]
		switch {
		case known && json.Compact(&compact, raw) == nil && slices.Contains(values, compact.String()):
		case known:
			f.fail(name, "%s is not supported with this value; leave it out, or send %s", name, strings.Join(values, " or "))
		default:
			f.fail(name, "%s is not supported; leave it out", strconv.Quote(name))
		}
	}
	return f.err
}

func (f *fields) text(name string) (s string) {
	if raw, ok := f.take(name); ok && json.Unmarshal(raw, &s) != nil {
		f.fail(name, "%s must be a string", name)
	}
	return s
}

func (f *fields) boolean(name string) (b bool) {
	if raw, ok := f.take(name); ok && json.Unmarshal(raw, &b) != nil {
		f.fail(name, "%s must be true or false", name)
	}
	return b
}

func (f *fields) number(name string, least, most, absent float64) float64 {
	raw, ok := f.take(name)
	if !ok {
		return absent
	}
	var x float64
	if json.Unmarshal(raw, &x) != nil || x < least || x > most {
		f.fail(name, "%s must be a number from %v to %v", name, least, most)
	}
	return x
}

func (f *fields) integer(name string, least, most, absent int) int {
	raw, ok := f.take(name)
	if !ok {
		return absent
	}
	var x int
	if json.Unmarshal(raw, &x) != nil || x < least || x > most {
		f.fail(name, "%s must be a whole number from %d to %d", name, least, most)
	}
	return x
}

// seed is the request's, or one of its own.
func (f *fields) seed() uint64 {
	raw, ok := f.take("seed")
	if !ok {
		return rand.Uint64()
	}
	var x int64
	if json.Unmarshal(raw, &x) != nil {
		f.fail("seed", "seed must be a whole number")
	}
	return uint64(x)
}

func (f *fields) bias() map[int32]float64 {
	raw, ok := f.take("logit_bias")
	if !ok {
		return nil
	}
	var values map[string]float64
	bias := map[int32]float64{}
	err := json.Unmarshal(raw, &values)
	for key, x := range values {
		id, wrong := strconv.ParseInt(key, 10, 32)
		if wrong != nil || id < 0 || x < -100 || x > 100 {
			err = strconv.ErrRange
		}
		bias[int32(id)] = x
	}
	if err != nil {
		f.fail("logit_bias", "logit_bias must map token ids to numbers from -100 to 100")
	}
	return bias
}

func (f *fields) stops() []string {
	raw, ok := f.take("stop")
	if !ok {
		return nil
	}
	var one string
	var stops []string
	if json.Unmarshal(raw, &one) == nil {
		stops = []string{one}
	} else if json.Unmarshal(raw, &stops) != nil {
		f.fail("stop", "stop must be a string or a list of strings")
	}
	if len(stops) > maxStops || slices.Contains(stops, "") {
		f.fail("stop", "stop must have at most %d strings, none of them empty", maxStops)
	}
	return stops
}

// prompts are a string, a list of ids, or a list of either.
func (f *fields) prompts() []prompt {
	raw, ok := f.take("prompt")
	if !ok {
		f.fail("prompt", "prompt is required: a string, a list of token ids, or a list of either")
		return nil
	}
	if p, ok := onePrompt(raw); ok {
		return []prompt{p}
	}
	var list []json.RawMessage
	if json.Unmarshal(raw, &list) != nil || len(list) == 0 || len(list) > maxPrompts {
		f.fail("prompt", "prompt must be a string, a list of token ids, or a list of 1 to %d of those", maxPrompts)
		return nil
	}
	prompts := make([]prompt, len(list))
	for i, raw := range list {
		if prompts[i], ok = onePrompt(raw); !ok {
			f.fail("prompt", "prompt[%d] must be a string or a list of token ids", i)
			return nil
		}
	}
	return prompts
}

func onePrompt(raw json.RawMessage) (p prompt, ok bool) {
	if json.Unmarshal(raw, &p.text) == nil && string(raw) != "null" {
		return p, true
	}
	p.text = ""
	var ids []*int32
	if json.Unmarshal(raw, &ids) != nil || len(ids) == 0 || slices.Contains(ids, nil) {
		return p, false
	}
	for _, id := range ids {
		p.ids = append(p.ids, *id)
	}
	return p, true
}

func (f *fields) messages() []template.Message {
	raw, ok := f.take("messages")
	if !ok {
		f.fail("messages", "messages is required: a list of objects with role and content")
		return nil
	}
	var list []map[string]json.RawMessage
	if json.Unmarshal(raw, &list) != nil || len(list) == 0 {
		f.fail("messages", "messages must be a list, not empty, of objects with role and content")
		return nil
	}
	messages := make([]template.Message, len(list))
	for i, m := range list {
		at := fmt.Sprintf("messages[%d]", i)
		one := &fields{left: m}
		role := one.text("role")
		switch role {
		case "system", "user", "assistant":
		case "developer":
			role = "system" // what it was called before
		default:
			one.fail("role", "role must be system, developer, user or assistant")
		}
		content, written := one.content()
		one.take("name") // tells speakers apart; no template here reads it
		for _, name := range slices.Sorted(maps.Keys(one.left)) {
			if raw, ok := one.take(name); ok && string(raw) != "[]" {
				one.fail(name, "%s is not supported; leave it out", strconv.Quote(name))
			}
		}
		if !written {
			one.fail("content", "content is required: a string or a list of parts")
		}
		if one.err != nil {
			one.err.Param = at + "." + one.err.Param
			one.err.Message = at + ": " + one.err.Message
			if f.err == nil {
				f.err = one.err
			}
			return nil
		}
		messages[i] = template.Message{Role: role, Content: content}
	}
	return messages
}

// content is a string or a list of parts of type text; false if there is none.
func (f *fields) content() (string, bool) {
	raw, ok := f.take("content")
	var s string
	if !ok || json.Unmarshal(raw, &s) == nil {
		return s, ok
	}
	var parts []struct {
		Type string  `json:"type"`
		Text *string `json:"text"`
	}
	if json.Unmarshal(raw, &parts) != nil {
		f.fail("content", "content must be a string or a list of parts")
	}
	for _, p := range parts {
		if p.Type != "text" || p.Text == nil {
			f.fail("content", "only parts of type text, with a text, are supported")
			break
		}
		s += *p.Text
	}
	return s, true
}
