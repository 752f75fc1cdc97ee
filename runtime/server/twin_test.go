package server

import (
	"bufio"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// gathered is an answer, whole or put together from a stream.
type gathered struct {
	Choices map[int]*gatheredChoice
	Usage   map[string]any
}

type gatheredChoice struct {
	Content, Arguments, Finish string
	Calls                      []string
	Logprobs                   []any
}

// TestStreamedIsWhole: the chunks of a stream, put together, are the answer that is
// not streamed, whatever is asked for.
func TestStreamedIsWhole(t *testing.T) {
	server, _ := serveReal(t)
	r := rand.New(rand.NewPCG(1, 7))
	maybe := func(text string) string {
		if r.IntN(2) == 0 {
			return ""
		}
		return text
	}
	for range 60 {
		body := fmt.Sprintf(`"model":"stories","seed":%d,"temperature":%g`, r.IntN(100), []float64{0, 0.7, 1.5}[r.IntN(3)]) +
			fmt.Sprintf(`,"max_tokens":%d`, 4+r.IntN(27)) + maybe(fmt.Sprintf(`,"n":%d`, 1+r.IntN(3))) +
			maybe(`,"stop":["the",". ","a l"]`) + maybe(`,"include_stop_str_in_output":true`) + maybe(`,"min_tokens":4`) + maybe(`,"skip_special_tokens":false`)
		path := "/v1/completions"
		if r.IntN(2) == 0 {
			body += `,"prompt":["Once upon a time",[1,403,407]]` + maybe(`,"echo":true`) + maybe(`,"logprobs":2`)
		} else {
			path = "/v1/chat/completions"
			body += `,"messages":[{"role":"user","content":"Once"}]` + maybe(`,"logprobs":true,"top_logprobs":1`)
			body += maybe(`,"tools":[{"type":"function","function":{"name":"f"}}]` + maybe(`,"tool_choice":"required"`))
		}
		whole, streamed := gather(t, server.URL+path, "{"+body+"}"), gather(t, server.URL+path, "{"+body+`,"stream":true,"stream_options":{"include_usage":true}}`)
		if diff := cmp.Diff(whole, streamed); diff != "" {
			t.Fatalf("%s: %s", body, diff)
		}
	}
}

// gather reads an answer.
func gather(t *testing.T, url, body string) gathered {
	t.Helper()
	resp, err := http.Post(url, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	g := gathered{Choices: map[int]*gatheredChoice{}}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		data := strings.TrimPrefix(lines.Text(), "data: ")
		if data == "" || data == "[DONE]" {
			continue
		}
		var o struct {
			Choices []struct {
				Index          int
				Text           string
				FinishReason   *string `json:"finish_reason"`
				Message, Delta struct {
					Content   string
					ToolCalls []toolCall `json:"tool_calls"`
				}
				Logprobs map[string][]any
			}
			Usage map[string]any
			Error any
		}
		if err := json.Unmarshal([]byte(data), &o); err != nil || o.Error != nil {
			t.Fatalf("%s: %.300s %v", body, data, err)
		}
		if o.Usage != nil {
			delete(o.Usage, "prompt_tokens_details") // the second has more of it in the cache
			g.Usage = o.Usage
		}
		for _, c := range o.Choices {
			if g.Choices[c.Index] == nil {
				g.Choices[c.Index] = &gatheredChoice{}
			}
			to := g.Choices[c.Index]
			to.Content += c.Text + c.Message.Content + c.Delta.Content
			for _, call := range append(c.Message.ToolCalls, c.Delta.ToolCalls...) {
				if call.ID != "" {
					to.Calls = append(to.Calls, call.Function.Name)
				}
				to.Arguments += call.Function.Arguments
			}
			for _, list := range []string{"content", "tokens", "token_logprobs", "top_logprobs", "text_offset"} {
				for _, l := range c.Logprobs[list] {
					to.Logprobs = append(to.Logprobs, map[string]any{list: l})
				}
			}
			if c.FinishReason != nil {
				to.Finish = *c.FinishReason
			}
		}
	}
	for _, c := range g.Choices { // of several lists side by side, each in its own order
		byList := map[string][]any{}
		for _, l := range c.Logprobs {
			for list, x := range l.(map[string]any) {
				byList[list] = append(byList[list], x)
			}
		}
		c.Logprobs = []any{byList}
	}
	return g
}
