package template

import (
	"errors"
	"strings"
	"testing"
)

func TestChatML(t *testing.T) {
	for name, c := range map[string]struct {
		messages []Message
		generate bool
		want     string
	}{
		"nothing":  {nil, false, ""},
		"question": {[]Message{{"user", "Tell me"}}, true, "<|im_start|>user\nTell me<|im_end|>\n<|im_start|>assistant\n"},
		"talk": {
			[]Message{{"system", "Be brief."}, {"user", "Hi"}, {"assistant", ""}}, false,
			"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n",
		},
	} {
		got, err := ChatML().Render(c.messages, c.generate)
		if err != nil || got != c.want {
			t.Errorf("%s: %q, %v; want %q", name, got, err, c.want)
		}
	}
}

func TestJinjaIsRefused(t *testing.T) {
	text, err := Jinja("chat_template.jinja").Render([]Message{{"user", "Hi"}}, true)
	if text != "" || !errors.Is(err, ErrUnsupported) {
		t.Fatalf("%q, %v", text, err)
	}
	for _, says := range []string{"chat_template.jinja", "Jinja", "/v1/completions"} {
		if !strings.Contains(err.Error(), says) {
			t.Errorf("%v does not say %s", err, says)
		}
	}
}
