package weights

import (
	"encoding/json"
	"io"
	"testing"
)

func TestJSONError(t *testing.T) {
	for text, want := range map[string]string{
		`[]`:                      "it is a list, not an object",
		`"a"`:                     "it is a string, not an object",
		`{"name": 5}`:             "name is a number, not a string",
		`{"deep": {"ids": [{}]}}`: "deep.ids is an object, not a whole number",
		`{"deep": {"ids": 1.5}}`:  "deep.ids is a number, not a list",
		`{"flag": "no"}`:          "flag is a string, not true or false",
		`{"rate": true}`:          "rate is true or false, not a number",
		`{`:                       "unexpected end of JSON input",
	} {
		var into struct {
			Name string  `json:"name"`
			Flag bool    `json:"flag"`
			Rate float64 `json:"rate"`
			Deep struct {
				IDs []int32 `json:"ids"`
			} `json:"deep"`
		}
		if got := JSONError(json.Unmarshal([]byte(text), &into)); got == nil || got.Error() != want {
			t.Errorf("%s: %v, want %q", text, got, want)
		}
	}
	if got := JSONError(io.EOF); got != io.EOF {
		t.Error(got)
	}
}
