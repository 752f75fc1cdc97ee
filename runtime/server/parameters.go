package server

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// endpoint is a set of endpoints that take a parameter.
type endpoint uint8

const (
	chat endpoint = 1 << iota
	completions
	embeddings
	tokenize
	detokenize

	texts = chat | completions
)

// verdict says what happens to a parameter.
type verdict string

const (
	served  verdict = "served"
	ignored verdict = "ignored" // changes no answer
	refused verdict = "refused" // would change the answer in a way that is not there
)

// parameter is one that clients may know. Whatever is not in the table is refused.
type parameter struct {
	name    string
	of      endpoint
	verdict verdict
	note    string   // what it does, or why it is refused and what to do instead
	neutral []string // values of a refused one that change nothing
}

// parameters are what docs/contract.md lists.
var parameters = []parameter{
	{"model", chat | completions | embeddings | tokenize | detokenize, served, "required: a name of `/v1/models`", nil},
	{"messages", chat | tokenize, served, "roles system, developer, user, assistant, tool; content is text, or parts of type text", nil},
	{"prompt", completions, served, "a string, token ids, or a list of up to 128 of either", nil},
	{"prompt", tokenize, served, "a string", nil},
	{"input", embeddings, served, "a string, token ids, or a list of up to 2048 of either", nil},
	{"tokens", detokenize, served, "token ids", nil},

	{"tools", chat | tokenize, served, "up to 128 of type function; with `strict`, arguments are valid under `parameters`", nil},
	{"tool_choice", chat | tokenize, served, "none (the model is not told of any), auto, required, a function, or allowed_tools", nil},
	{"parallel_tool_calls", chat | tokenize, served, "default true; false: at most one call in an answer", nil},
	{"response_format", texts, served, "text, json_object or json_schema (with name and schema), which is followed whether strict or not", nil},
	{"structured_outputs", texts, served, "one of regex, choice, grammar, json and json_object, as vLLM's clients ask for it", nil},

	{"max_tokens", texts, served, "of the answer; what the context has room for bounds it too. Default: 16 for completions, all the room for chats", nil},
	{"max_completion_tokens", chat, served, "the newer name of `max_tokens`", nil},
	{"min_tokens", texts, served, "no end token and no stop string ends the text earlier; at most `max_tokens`", nil},
	{"n", texts, served, "answers to each prompt, up to 128 in all; those after the first have seeds of their own", nil},
	{"temperature", texts, served, "0 to 2, default 1; 0 takes the likeliest token", nil},
	{"top_p", texts, served, "0 to 1, default 1; 0 is top_k 1", nil},
	{"top_k", texts, served, "0 or -1: all", nil},
	{"min_p", texts, served, "0 to 1, default 0", nil},
	{"presence_penalty", texts, served, "-2 to 2, default 0", nil},
	{"frequency_penalty", texts, served, "-2 to 2, default 0", nil},
	{"repetition_penalty", texts, served, "0.01 to 10, default 1", nil},
	{"logit_bias", texts, served, "token ids to -100 to 100", nil},
	{"seed", texts, served, "same seed, same text", nil},
	{"stop", texts, served, "up to 16 strings, which are not part of the answer", nil},
	{"stop_token_ids", texts, served, "end tokens beside the model's", nil},
	{"include_stop_str_in_output", texts, served, "the stop string is part of the answer", nil},
	{"ignore_eos", texts, served, "the model's end tokens do not end the text", nil},
	{"skip_special_tokens", texts, served, "default true", nil},
	{"logprobs", chat, served, "true or false", nil},
	{"logprobs", completions, served, "how many of the likeliest tokens, 0 to 20, beside the chosen one", nil},
	{"top_logprobs", chat, served, "0 to 20; needs `logprobs`", nil},
	{"stream", texts, served, "server-sent events, `data: [DONE]` at the end", nil},
	{"stream_options", texts, served, "with `stream`: `include_usage`, `continuous_usage_stats`; `include_obfuscation` is ignored", nil},
	{"include_energy", texts, served, "`usage` has `energy`: `joules_per_token`, the model's over the last minutes, and `joules`, that times the tokens computed; absent while that is not known: the device does not tell its energy, or no token has been measured there yet (within the first second on a device)", nil},
	{"echo", completions, served, "the prompt is put in front of the text", nil},

	{"add_generation_prompt", chat | tokenize, served, "default true", nil},
	{"continue_final_message", chat | tokenize, served, "the answer goes on where the last message ends", nil},
	{"add_special_tokens", chat | tokenize | completions | embeddings, served, "the tokens that the model wants around a text; default false for messages, whose template writes them, true otherwise", nil},
	{"chat_template_kwargs", chat | tokenize, served, "variables for the model's chat template", nil},
	{"documents", chat, served, "for the model's chat template", nil},
	{"reasoning_effort", chat, served, "for the model's chat template", nil},
	{"return_token_strs", tokenize, served, "`token_strs` beside `tokens`", nil},

	{"encoding_format", embeddings, served, "`float` or `base64`: float32, little-endian", nil},
	{"dimensions", embeddings, served, "only the model's own number: cutting vectors short is for models trained for it", nil},

	{"user", texts | embeddings, ignored, "a string", nil},
	{"metadata", texts, ignored, "an object", nil},
	{"store", texts, ignored, "nothing is kept", nil},
	{"service_tier", texts, ignored, "", nil},
	{"safety_identifier", texts, ignored, "", nil},
	{"prompt_cache_key", texts, ignored, "the prefix cache needs none", nil},
	{"prompt_cache_options", texts, ignored, "", nil},
	{"prompt_cache_retention", texts, ignored, "", nil},
	{"prediction", chat, ignored, "it would only be faster", nil},
	{"request_id", texts | embeddings, ignored, "send the header `x-request-id`", nil},
	{"session_id", texts, ignored, "", nil},

	{"suffix", completions, refused, "models that fill in the middle take it as part of the prompt", []string{`""`}},
	{"best_of", completions, refused, "send n and choose", []string{"1"}},
	{"use_beam_search", texts, refused, "there is no beam search", []string{"false"}},
	{"length_penalty", texts, refused, "there is no beam search", []string{"1", "1.0"}},
	{"early_stopping", texts, refused, "there is no beam search", []string{"false"}},
	{"echo", chat, refused, "it is for completions", []string{"false"}},
	{"functions", chat, refused, "send tools", []string{"[]"}},
	{"function_call", chat, refused, "send tool_choice", []string{`"none"`, `"auto"`}},
	{"modalities", chat, refused, "models here read and write text", []string{`["text"]`}},
	{"audio", chat, refused, "models here read and write text", nil},
	{"moderation", chat, refused, "nothing is classified", nil},
	{"web_search_options", chat, refused, "nothing is searched", nil},
	{"verbosity", chat, refused, "say it in the prompt", []string{`"medium"`}},
	{"chat_template", chat | tokenize, refused, "the model's own is used; render another yourself and send the text to /v1/completions", nil},
	{"guided_json", texts, refused, "send structured_outputs with json", nil},
	{"guided_regex", texts, refused, "send structured_outputs with regex", nil},
	{"guided_choice", texts, refused, "send structured_outputs with choice", nil},
	{"guided_grammar", texts, refused, "send structured_outputs with grammar", nil},
	{"guided_decoding_backend", texts, refused, "there is one", nil},
	{"guided_whitespace_pattern", texts, refused, "white space is the grammar's", nil},
	{"allowed_token_ids", texts, refused, "send logit_bias, or structured_outputs with choice", nil},
	{"bad_words", texts, refused, "send logit_bias with their tokens", []string{"[]"}},
	{"prompt_logprobs", texts, refused, "send echo with logprobs to /v1/completions", nil},
	{"spaces_between_special_tokens", texts, refused, "tokens are written as the tokenizer has them", []string{"true"}},
	{"truncate_prompt_tokens", texts | embeddings, refused, "shorten the prompt", nil},
	{"return_tokens_as_token_ids", texts, refused, "send the text to /tokenize", []string{"false"}},
	{"return_token_ids", texts, refused, "send the text to /tokenize", []string{"false"}},
	{"priority", texts, refused, "the priority is the Model's", []string{"0"}},
	{"cache_salt", texts, refused, "the prefix cache is not divided further than by model", nil},
	{"include_reasoning", chat, refused, "what a model thinks is part of its text", []string{"true"}},
	{"thinking_token_budget", texts, refused, "send max_tokens", nil},
}

// find is the parameter of an endpoint.
func (e endpoint) find(name string) (parameter, bool) {
	i := slices.IndexFunc(parameters, func(p parameter) bool { return p.name == name && p.of&e != 0 })
	if i < 0 {
		return parameter{}, false
	}
	return parameters[i], true
}

// reads says that values of a parameter are looked at: they may be wrong.
func (e endpoint) reads(name string) bool {
	p, ok := e.find(name)
	return ok && p.verdict != refused
}

// refuses says why a parameter that nobody serves cannot have a value, or nothing.
func (e endpoint) refuses(name string, value json.RawMessage) string {
	p, known := e.find(name)
	if p.verdict == served {
		panic("server: nobody takes the parameter " + name)
	}
	if string(value) == "null" || known && p.verdict == ignored {
		return ""
	}
	var compact bytes.Buffer
	switch {
	case known && json.Compact(&compact, value) == nil && slices.Contains(p.neutral, compact.String()):
		return ""
	case known && p.neutral != nil:
		return fmt.Sprintf("%s is not supported with this value: %s; leave it out, or send %s", name, p.note, strings.Join(p.neutral, " or "))
	case known:
		return fmt.Sprintf("%s is not supported: %s", name, p.note)
	}
	return fmt.Sprintf("%.100q is not a parameter that is known here; leave it out", name)
}

// String lists a set of endpoints.
func (e endpoint) String() string {
	var list []string
	for i, name := range []string{"chat", "completions", "embeddings", "tokenize", "detokenize"} {
		if e&(1<<i) != 0 {
			list = append(list, name)
		}
	}
	return strings.Join(list, ", ")
}
