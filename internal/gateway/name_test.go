package gateway

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestModelName(t *testing.T) {
	deep := strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000)
	for name, c := range map[string]struct{ body, want, err string }{
		"plain":                 {`{"model":"m","messages":[]}`, "m", ""},
		"last":                  {"{\n \"messages\" : [ {\"role\":\"user\"} ] ,\t\"model\" : \"m\" }\n", "m", ""},
		"a nested one":          {`{"metadata":{"model":"no"},"x":[{"model":"no"}],"model":"m"}`, "m", ""},
		"in a text":             {`{"a":"\"model\":\"no\"","model":"m","b":"model"}`, "m", ""},
		"of two the last":       {`{"model":"no","model":"m"}`, "m", ""},
		"escaped backslashes":   {`{"a":"\\","b":"\\\"","c":"\\\\","model":"m"}`, "m", ""},
		"an escaped name":       {`{"model":"a\/b\u00e9\"c"}`, "a/bé\"c", ""},
		"an escaped key":        {`{"mod\u0065l":"m"}`, "m", ""},
		"another case":          {`{"Model":"m"}`, "", "names no model"},
		"brackets in a text":    {`{"a":["]}",{"b":"[{"}],"model":"m"}`, "m", ""},
		"literals":              {`{"a":-1.5e+3,"b":true,"c":null,"model":"m"}`, "m", ""},
		"deep":                  {`{"a":` + deep + `,"model":"m"}`, "m", ""},
		"broken UTF-8":          {"{\"model\":\"a\xffb\"}", "a\ufffdb", ""},
		"empty object":          {`{}`, "", "names no model"},
		"only nested":           {`{"a":{"model":"m"}}`, "", "names no model"},
		"null":                  {`{"model":null}`, "", "names no model"},
		"empty":                 {`{"model":""}`, "", "names no model"},
		"a number":              {`{"model":7}`, "", "must be a string"},
		"an object":             {`{"model":{"model":"m"}}`, "", "must be a string"},
		"a bad escape":          {`{"model":"\q"}`, "", "must be a string"},
		"nothing":               {``, "", "byte 0"},
		"an array":              {`["model"]`, "", "byte 0"},
		"not JSON":              {`model=m`, "", "byte 0"},
		"cut in a text":         {`{"model":"m`, "", "not a JSON object"},
		"cut after an escape":   {`{"model":"m\"`, "", "not a JSON object"},
		"cut in an array":       {`{"model":"m","a":[`, "", "not a JSON object"},
		"cut after a comma":     {`{"model":"m",`, "", "not a JSON object"},
		"a comma too many":      {`{"model":"m",}`, "", "not a JSON object"},
		"no comma":              {`{"a":1 "model":"m"}`, "", "byte 7"},
		"no colon":              {`{"model" "m"}`, "", "byte 9"},
		"a bare word":           {`{"a":nope,"model":"m"}`, "", "not a JSON object"},
		"something behind":      {`{"model":"m"} {}`, "", "byte 14"},
		"a byte order mark":     {"\ufeff{\"model\":\"m\"}", "", "byte 0"},
		"a key that is no text": {`{model:"m"}`, "", "byte 1"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := modelName([]byte(c.body))
			if got != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("got %q, %v; want %q, %q", got, err, c.want, c.err)
			}
		})
	}
}

// FuzzModelName: for every object that encoding/json accepts, both agree.
func FuzzModelName(f *testing.F) {
	for _, seed := range []string{
		`{"model":"m","messages":[{"role":"user","content":"a\"b\\"}]}`,
		`{"a":{"model":"n"},"mod\u0065l":"\u00e9\ud83d\ude00","model":"x"}`,
		`{"model":null}`, `{"model":1e5}`, "{\"model\":\"\xff\"}", `{"a":[[],{}],"b":-0.1E-7,"c":false}`, `{} `, `{"`, `[1]`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		got, err := modelName(body)
		if err != nil && got != "" {
			t.Fatalf("both a name %q and an error %v", got, err)
		}
		var twin map[string]json.RawMessage
		if json.Unmarshal(body, &twin) != nil || twin == nil {
			return // the worker will say what is wrong, if modelName did not
		}
		want := ""
		if json.Unmarshal(twin["model"], &want) != nil {
			want = ""
		}
		if got != want || (err == nil) != (want != "") {
			t.Fatalf("modelName(%q) = %q, %v; encoding/json finds %q", body, got, err, want)
		}
	})
}

func BenchmarkModelName(b *testing.B) {
	for name, text := range map[string]string{
		"text":    `{"messages":[{"role":"user","content":"` + strings.Repeat("All work and no play. ", 10_000) + `"}],"model":"m"}`,
		"numbers": `{"input":[` + strings.Repeat("12345,", 37_000) + `0],"model":"m"}`,
	} {
		b.Run(name, func(b *testing.B) {
			body := []byte(text)
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := modelName(body); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
