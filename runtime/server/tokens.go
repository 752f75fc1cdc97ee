package server

import (
	"context"
	"encoding/json"
	"net/http"
)

// tokenization asks for the ids of a text or a chat.
type tokenization struct {
	model  string
	text   string
	dialog *dialog // nil: text
	around bool
	pieces bool
}

func parseTokenize(body []byte) (asked, *apiError) {
	f := parseFields(tokenize, body)
	t := &tokenization{model: f.modelName(), pieces: f.boolean("return_token_strs", false)}
	if raw, ok := f.left["messages"]; ok && string(raw) != "null" {
		d := f.dialog()
		tools := f.tooling()
		d.tools, d.wholeTools = tools.shown, tools.whole
		t.dialog = &d
		if _, ok := f.take("prompt"); ok {
			f.fail("prompt", "prompt and messages exclude each other")
		}
		return t, f.finish()
	}
	for _, name := range []string{"messages", "add_generation_prompt", "continue_final_message", "chat_template_kwargs", "tools", "tool_choice", "parallel_tool_calls"} {
		f.take(name) // a text has no use for them
	}
	t.around = f.boolean("add_special_tokens", true)
	raw, ok := f.take("prompt")
	if !ok {
		f.fail("prompt", "prompt or messages is required")
	} else if json.Unmarshal(raw, &t.text) != nil {
		f.fail("prompt", "prompt must be a string")
	}
	return t, f.finish()
}

// tokenized is the answer, as vLLM's clients read it.
type tokenized struct {
	Count     int      `json:"count"`
	MaxTokens int      `json:"max_model_len"`
	IDs       []int32  `json:"tokens"`
	Pieces    []string `json:"token_strs"` // null unless asked for
}

func (t *tokenization) modelName() string { return t.model }

func (t *tokenization) answer(_ context.Context, w http.ResponseWriter, c call) *apiError {
	if c.Tokenizer == nil {
		return noTokenizer(t.model)
	}
	var ids []int32
	if t.dialog == nil {
		ids = c.Tokenizer.Encode(t.text, t.around)
	} else {
		var e *apiError
		if ids, e = t.dialog.encode(c); e != nil {
			return e
		}
	}
	if ids == nil {
		ids = []int32{}
	}
	var pieces []string
	if t.pieces {
		pieces = make([]string, len(ids))
		for i, id := range ids {
			pieces[i] = c.Tokenizer.Text(id)
		}
	}
	writeJSON(w, http.StatusOK, tokenized{len(ids), c.MaxTokens, ids, pieces})
	return nil
}

// detokenization asks for the text of ids.
type detokenization struct {
	model string
	ids   []int32
}

func parseDetokenize(body []byte) (asked, *apiError) {
	f := parseFields(detokenize, body)
	d := &detokenization{model: f.modelName(), ids: f.ids("tokens")}
	if d.ids == nil {
		f.fail("tokens", "tokens is required: a list of token ids")
	}
	return d, f.finish()
}

func (d *detokenization) modelName() string { return d.model }

func (d *detokenization) answer(_ context.Context, w http.ResponseWriter, c call) *apiError {
	if c.Tokenizer == nil {
		return noTokenizer(d.model)
	}
	for _, id := range d.ids {
		if id < 0 || int(id) >= c.Tokenizer.Size() {
			return invalid("tokens", "The model has %d tokens; %d is none of them.", c.Tokenizer.Size(), id)
		}
	}
	writeJSON(w, http.StatusOK, map[string]any{"prompt": c.Tokenizer.Decode(d.ids, true)})
	return nil
}
