package server

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/estiba/estiba/runtime/engine"
)

// BenchmarkStream is what a streamed token costs from the engine's step to the
// client, over loopback; the program takes no time.
func BenchmarkStream(b *testing.B) {
	const tokens = 200
	f := newFake(b, strings.Repeat("there was a little girl ", 40), func(_ *script, r *engine.Replica) { r.Blocks, r.MaxTokens = 64, 1024 })
	server := httptest.NewServer(f.handler)
	defer server.Close()
	body := `{"model":"stories","messages":[{"role":"user","content":"x"}],"temperature":0,"stream":true,"ignore_eos":true,"max_tokens":200}`
	b.ReportAllocs()
	for b.Loop() {
		resp, err := http.Post(server.URL+"/v1/chat/completions", "application/json", strings.NewReader(body))
		if err != nil {
			b.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, resp.Body); err != nil || n < tokens*100 {
			b.Fatal(n, err)
		}
		resp.Body.Close()
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*tokens), "µs/token")
}
