package backendtest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/estiba/estiba/runtime/arch"
	"github.com/estiba/estiba/runtime/backend"
	"github.com/estiba/estiba/runtime/batching"
	"github.com/estiba/estiba/runtime/graph"
	"github.com/estiba/estiba/runtime/tensor"
)

// Served is what is promised of programs without Limits.Exact, by the format of the weights.
type Served struct {
	// Off bounds the error of one op by the norm of what is right, and half that of a small model's logits.
	Off func(tensor.DType) float64
	// Alone says that the logits of a token that decodes do not depend on who decodes in the same step.
	Alone func(tensor.DType) bool
}

// Run takes a backend through all that is asked of one.
func Run(t *testing.T, b backend.Backend, served Served) {
	RunServed(t, b, served)
	t.Run("exact ops", func(t *testing.T) { ops(t, b, func(tensor.DType) float64 { return 1e-5 }, true) })
	t.Run("exact formats", func(t *testing.T) {
		formats(t, b, func(tensor.DType) float64 { return 1e-5 }, true, func(t *testing.T, g *graph.Graph, w backend.Weights, _ tensor.DType) { Model(t, b, g, w) })
	})
	t.Run("exact models", func(t *testing.T) {
		models(t, func(t *testing.T, g *graph.Graph, w backend.Weights, _ tensor.DType, vocabulary int) {
			if g.Encoder() {
				Encoder(t, b, g, w, vocabulary)
				return
			}
			Model(t, b, g, w)
		})
	})
}

// RunServed takes a backend through what is asked of programs without Limits.Exact.
func RunServed(t *testing.T, b backend.Backend, served Served) {
	t.Run("ops", func(t *testing.T) { ops(t, b, served.Off, false) })
	model := func(t *testing.T, g *graph.Graph, w backend.Weights, d tensor.DType) { AsServed(t, b, g, w, served, d) }
	t.Run("formats", func(t *testing.T) { formats(t, b, served.Off, false, model) })
	t.Run("models", func(t *testing.T) {
		models(t, func(t *testing.T, g *graph.Graph, w backend.Weights, d tensor.DType, vocabulary int) {
			if g.Encoder() {
				encoderAsServed(t, b, g, w, vocabulary, 2*served.Off(d))
				return
			}
			model(t, g, w, d)
		})
	})
	t.Run("formats of one value", func(t *testing.T) { mixed(t, b, served.Off(tensor.Q8_0)) })
	t.Run("sizes", func(t *testing.T) { sizes(t, b) })
	t.Run("cancellation", func(t *testing.T) { cancellation(t, b) })
	t.Run("refusals", func(t *testing.T) { refusals(t, b) })
}

// models calls check for small ones of every kind in every format without blocks.
func models(t *testing.T, check func(t *testing.T, g *graph.Graph, w backend.Weights, d tensor.DType, vocabulary int)) {
	for name, c := range shapes {
		for _, d := range []tensor.DType{tensor.F32, tensor.F16, tensor.BF16} {
			t.Run(fmt.Sprintf("%s/%v", name, d), func(t *testing.T) {
				g, err := arch.Build(c)
				if err != nil {
					t.Fatal(err)
				}
				check(t, g, Random(g, d, 1), d, c.Vocabulary)
			})
		}
	}
}

// shapes are small models whose sizes are as odd as their architectures allow.
var shapes = map[string]arch.Config{
	"one head":            {Layers: 1, Hidden: 5, FFN: 3, Heads: 1, KVHeads: 1, HeadDim: 2},
	"three heads on one":  {Layers: 2, Hidden: 17, FFN: 13, Heads: 3, KVHeads: 1, HeadDim: 6, RopePairs: arch.RopeNeighbours},
	"seven heads on 7":    {Layers: 2, Hidden: 33, FFN: 31, Heads: 7, KVHeads: 7, HeadDim: 10, TiedOutput: true},
	"nine heads on three": {Layers: 3, Hidden: 24, FFN: 50, Heads: 9, KVHeads: 3, HeadDim: 34, TiedOutput: true, RopePairs: arch.RopeNeighbours},
	"wider than a piece":  {Layers: 1, Hidden: 300, FFN: 515, Heads: 2, KVHeads: 1, HeadDim: 150},

	"biases":          {Layers: 2, Hidden: 17, FFN: 13, Heads: 6, KVHeads: 2, HeadDim: 4, QKVBias: true, OutputBias: true, FFNBias: true},
	"small windows":   {Layers: 3, Hidden: 20, FFN: 9, Heads: 6, KVHeads: 3, HeadDim: 4, Windows: []int{1, 5, 0}},
	"windows":         {Architecture: "qwen3", Layers: 2, Hidden: 20, FFN: 9, Heads: 4, KVHeads: 4, HeadDim: 6, Windows: []int{16, 17}},
	"all scaled":      {Layers: 1, Hidden: 20, FFN: 9, Heads: 4, KVHeads: 4, HeadDim: 16, RopeScaling: arch.RopeScaling{Kind: arch.RopeYaRN, Factor: 4, Original: 16, BetaFast: 32, BetaSlow: 1, Amplitude: 1.14}},
	"part of a head":  {Architecture: "phi3", Layers: 2, Hidden: 20, FFN: 9, Heads: 6, KVHeads: 2, HeadDim: 10, RopeDims: 6},
	"capped":          {Architecture: "gemma2", Layers: 3, Hidden: 20, FFN: 9, Heads: 6, KVHeads: 2, HeadDim: 4, NormShift: 1, Windows: []int{4, 0, 4}, AttentionSoftCap: 5, LogitSoftCap: 3, AttentionScale: 0.3, GELU: arch.GELUTanh, TiedOutput: true},
	"experts":         {Architecture: "mixtral", Layers: 2, Hidden: 20, FFN: 9, Heads: 4, KVHeads: 2, HeadDim: 6, Experts: 5, ExpertsPerToken: 2, ExpertFFN: 9, NormalizeExperts: true},
	"one of experts":  {Architecture: "qwen3_moe", Layers: 3, Hidden: 20, FFN: 9, Heads: 4, KVHeads: 2, HeadDim: 6, Experts: 7, ExpertsPerToken: 1, ExpertFFN: 11, DenseLayers: []int{1}},
	"all the experts": {Architecture: "qwen3_moe", Layers: 1, Hidden: 20, FFN: 9, Heads: 4, KVHeads: 2, HeadDim: 6, Experts: 3, ExpertsPerToken: 3, ExpertFFN: 11, QKVBias: true},
	"encoder":         {Architecture: "bert", Encoder: true, Layers: 2, Hidden: 18, FFN: 23, Heads: 3, KVHeads: 3, HeadDim: 6, Types: 2},
}

func init() {
	for name, c := range shapes {
		if c.Architecture == "" {
			c.Architecture = "llama"
		}
		c.Vocabulary, c.MaxPositions, c.NormEps, c.RopeTheta, c.BOS = 29, 512, 1e-5, 500, -1
		shapes[name] = c
	}
}

// ops puts each kind between an embedding and the result, and compares with the reference.
func ops(t *testing.T, b backend.Backend, off func(tensor.DType) float64, exact bool) {
	const vocabulary, width, dim = 11, 36, 6
	none := graph.Attr{}
	type build = func(b *graph.Builder, x graph.Value) graph.Value
	cases := map[graph.Kind][]build{
		graph.Embed: {func(b *graph.Builder, x graph.Value) graph.Value { return x }},
		graph.Rows:  {func(b *graph.Builder, x graph.Value) graph.Value { return x }},
		graph.Positions: {func(b *graph.Builder, x graph.Value) graph.Value {
			return b.Op(graph.Add, none, x, b.Op(graph.Positions, none, weight(b, "p", vocabulary, width)))
		}},
		graph.RMSNorm: {
			func(b *graph.Builder, x graph.Value) graph.Value {
				return b.Op(graph.RMSNorm, graph.Attr{Eps: 1e-3}, x, weight(b, "w", width))
			},
			func(b *graph.Builder, x graph.Value) graph.Value {
				return b.Op(graph.RMSNorm, graph.Attr{Eps: 1e-3, Heads: 4, Shift: 1}, x, weight(b, "w", width/4))
			},
		},
		graph.LayerNorm: {func(b *graph.Builder, x graph.Value) graph.Value {
			return b.Op(graph.LayerNorm, graph.Attr{Eps: 1e-3}, x, weight(b, "w", width), weight(b, "bias", width))
		}},
		graph.Bias: {
			func(b *graph.Builder, x graph.Value) graph.Value {
				return b.Op(graph.Bias, none, x, weight(b, "w", width))
			},
			func(b *graph.Builder, x graph.Value) graph.Value {
				return b.Op(graph.Bias, graph.Attr{Row: 2}, x, weight(b, "w", 3, width))
			},
		},
		graph.GELU: {
			func(b *graph.Builder, x graph.Value) graph.Value { return b.Op(graph.GELU, none, x) },
			func(b *graph.Builder, x graph.Value) graph.Value { return b.Op(graph.GELU, graph.Attr{Tanh: true}, x) },
		},
		graph.Scale: {func(b *graph.Builder, x graph.Value) graph.Value {
			return b.Op(graph.Scale, graph.Attr{Scale: 3.25}, x)
		}},
		graph.SoftCap: {func(b *graph.Builder, x graph.Value) graph.Value {
			return b.Op(graph.SoftCap, graph.Attr{SoftCap: 0.5}, x)
		}},
		graph.Add: {
			func(b *graph.Builder, x graph.Value) graph.Value { return b.Op(graph.Add, none, x, x) },
			func(b *graph.Builder, x graph.Value) graph.Value {
				return b.Op(graph.Add, none, b.Op(graph.MatMul, none, x, weight(b, "w", width, width)), x)
			},
		},
		graph.SwiGLU: {func(b *graph.Builder, x graph.Value) graph.Value {
			return b.Op(graph.SwiGLU, none, x, b.Op(graph.MatMul, none, x, weight(b, "w", width, width)))
		}},
	}
	for _, n := range []int{1, 2, 37, 300} {
		cases[graph.MatMul] = append(cases[graph.MatMul], func(b *graph.Builder, x graph.Value) graph.Value {
			return b.Op(graph.MatMul, none, x, weight(b, "w", n, width))
		})
	}
	for _, tanh := range []bool{false, true} {
		cases[graph.GeGLU] = append(cases[graph.GeGLU], func(b *graph.Builder, x graph.Value) graph.Value {
			return b.Op(graph.GeGLU, graph.Attr{Tanh: tanh}, x, b.Op(graph.MatMul, none, x, weight(b, "w", width, width)))
		})
	}
	for _, neighbours := range []bool{false, true} {
		for _, frequencies := range [][]float32{{1, 0.3, 0.1}, {0.5}} {
			a := graph.Attr{Heads: width / dim, HeadDim: dim, Frequencies: frequencies, Amplitude: 1.25, Neighbours: neighbours}
			cases[graph.Rope] = append(cases[graph.Rope],
				func(b *graph.Builder, x graph.Value) graph.Value { return b.Op(graph.Rope, a, x) },
				func(b *graph.Builder, x graph.Value) graph.Value {
					return b.Op(graph.Rope, a, x, weight(b, "divisors", len(frequencies)))
				})
		}
	}
	for _, topK := range []int{1, 3, 5} {
		for _, normalize := range []bool{false, true} {
			a := graph.Attr{TopK: topK, Normalize: normalize}
			route := func(b *graph.Builder, x graph.Value) graph.Value {
				return b.Op(graph.Route, a, b.Op(graph.MatMul, none, x, weight(b, "router", 5, width)))
			}
			product := func(b *graph.Builder, name string, x, route graph.Value, n int) graph.Value {
				in := []graph.Value{x, route}
				for e := range 5 {
					in = append(in, weight(b, fmt.Sprintf("%s.%d", name, e), n, b.Width(x)))
				}
				return b.Op(graph.ExpertMatMul, a, in...)
			}
			cases[graph.Route] = append(cases[graph.Route], route)
			cases[graph.ExpertMatMul] = append(cases[graph.ExpertMatMul], func(b *graph.Builder, x graph.Value) graph.Value {
				return product(b, "up", x, route(b, x), 7)
			})
			cases[graph.ExpertSum] = append(cases[graph.ExpertSum], func(b *graph.Builder, x graph.Value) graph.Value {
				r := route(b, x)
				up := product(b, "up", x, r, 7)
				in := []graph.Value{up, r}
				for e := range 5 {
					in = append(in, weight(b, fmt.Sprintf("down.%d", e), width, 7))
				}
				return b.Op(graph.ExpertSum, graph.Attr{TopK: topK}, b.Op(graph.ExpertMatMul, a, in...), r)
			})
		}
	}
	for _, kvHeads := range []int{1, 2, 3, 6} {
		cases[graph.Attention] = append(cases[graph.Attention], func(b *graph.Builder, x graph.Value) graph.Value {
			k := b.Op(graph.MatMul, none, x, weight(b, "k", kvHeads*dim, width))
			v := b.Op(graph.MatMul, none, x, weight(b, "v", kvHeads*dim, width))
			return b.Op(graph.Attention, graph.Attr{Heads: width / dim, KVHeads: kvHeads, HeadDim: dim, Scale: 2}, x, k, v)
		})
	}
	for _, a := range []graph.Attr{{Window: 1}, {Window: 3}, {Window: 4}, {Window: 11}, {Window: 100}, {SoftCap: 1.5}, {SoftCap: 0.5, Window: 5}, {Bidirectional: true}, {Bidirectional: true, SoftCap: 2}} {
		a.Heads, a.KVHeads, a.HeadDim, a.Scale = width/dim, 2, dim, 2
		cases[graph.Attention] = append(cases[graph.Attention], func(b *graph.Builder, x graph.Value) graph.Value {
			k := b.Op(graph.MatMul, none, x, weight(b, "k", 2*dim, width))
			v := b.Op(graph.MatMul, none, x, weight(b, "v", 2*dim, width))
			return b.Op(graph.Attention, a, x, k, v)
		})
	}
	tokens := []int32{3, 1, 4, 1, 5, 9, 2, 6, 10, 0, 8}
	for _, k := range graph.Kinds() {
		if len(cases[k]) == 0 {
			t.Errorf("%v has no case", k)
		}
		for i, build := range cases[k] {
			for _, d := range []tensor.DType{tensor.F32, tensor.F16, tensor.BF16} {
				if !b.Supports(k, d) {
					t.Logf("%s does not support %v on %v", b.Name(), k, d)
					continue
				}
				var gb graph.Builder
				x := gb.Op(graph.Embed, none, weight(&gb, "table", vocabulary, width))
				h := gb.Op(graph.Rows, none, build(&gb, x))
				g, err := gb.Graph(h, h)
				if err != nil { // an encoder's
					g, err = gb.Graph(h, graph.None)
				}
				if err != nil {
					t.Fatalf("%v, case %d: %v", k, i, err)
				}
				w := Random(g, d, uint64(i))
				_, want, err := Reference(g, w, tokens)
				if err != nil {
					t.Fatal(err)
				}
				p := compile(t, b, g, w, backend.Limits{MaxTokens: len(tokens), MaxRows: len(tokens), BlockTokens: 4, Blocks: 3, Exact: exact})
				p.out.WantHidden = true
				p.run(t, span(0, tokens, []int32{2, 0, 1}))
				near(t, fmt.Sprintf("%v, case %d, %v", k, i, d), p.out.Hidden, want, off(d))
			}
		}
	}
}

// weight is one of which only name and shape matter.
func weight(b *graph.Builder, name string, shape ...int) graph.Value {
	return b.Weight(graph.Weight{Name: name, Shape: shape})
}

// The sequence of a model's tests.
const blockTokens, blocks, length = 4, 64, 43

// Model checks that an exact program of a graph gives the reference's logits within
// 1e-4, and the very same logits however its tokens are cut into chunks, batched with
// others, and laid out in blocks.
func Model(t *testing.T, b backend.Backend, g *graph.Graph, w backend.Weights) {
	t.Helper()
	r := rand.New(rand.NewPCG(11, 12))
	vocabulary := g.Vocabulary()
	tokens := func(n int) []int32 {
		ids := make([]int32, n)
		for i := range ids {
			ids[i] = r.Int32N(int32(vocabulary))
		}
		return ids
	}
	prompt := tokens(length)
	limits := backend.Limits{MaxTokens: 2 * length, MaxRows: 2 * length, BlockTokens: blockTokens, Blocks: blocks, Exact: true}
	p := compile(t, b, g, w, limits)
	table := func(from int) []int32 {
		ids := make([]int32, (length+blockTokens-1)/blockTokens)
		for i := range ids {
			ids[i] = int32(from + i)
		}
		return ids
	}

	want, wantHidden, err := Reference(g, w, prompt)
	if err != nil {
		t.Fatal(err)
	}
	p.out.WantHidden = true
	whole := slices.Clone(p.run(t, span(0, prompt, table(0))))
	near(t, "logits", whole, want, 1e-4)
	near(t, "hidden state", p.out.Hidden, wantHidden, 1e-4)
	p.out.WantHidden = false
	same := func(what string, got []float32) {
		t.Helper()
		if !slices.Equal(got, whole) {
			t.Errorf("%s: the logits differ from those of one pass", what)
		}
	}
	same("again", p.run(t, span(0, prompt, table(0))))

	for _, chunk := range []int{1, 2, 3, 4, 5, 16, length - 1} {
		var got []float32
		for at := 0; at < length; at += chunk {
			got = append(got, p.run(t, span(at, prompt[at:min(at+chunk, length)], table(20)))...)
		}
		same(fmt.Sprintf("in chunks of %d", chunk), got)
	}

	permuted := table(0)
	for i, at := range r.Perm(blocks)[:len(permuted)] {
		permuted[i] = int32(at)
	}
	same("blocks permuted", p.run(t, span(0, prompt, permuted)))

	// Three other sequences that decode and prefill beside it, at places of their own.
	others := [][]int32{tokens(9), tokens(17), tokens(30)}
	p.run(t, span(0, others[0][:8], []int32{50, 40, 30}))
	var got []float32
	for at, n := 0, 0; at < length; at += n {
		n = min(1+r.IntN(12), length-at)
		mine := span(at, prompt[at:at+n], table(0))
		decode := span(8, others[0][8:], []int32{50, 40, 30})
		decode.Rows = batching.LastRow
		prefill := span(0, others[1], []int32{63, 62, 61, 60, 59})
		prefill.Rows = batching.NoRows
		last := span(0, others[2][:30-n], []int32{49, 48, 47, 46, 45, 44, 43, 42})
		last.Rows = batching.LastRow
		rows := p.run(t, decode, prefill, mine, last)
		if len(rows) != (1+n+1)*vocabulary {
			t.Fatalf("%d numbers of logits, want %d rows of %d", len(rows), 1+n+1, vocabulary)
		}
		got = append(got, rows[vocabulary:(1+n)*vocabulary]...)
	}
	same("in company", got)

	one := span(0, prompt, table(0))
	one.Rows = batching.LastRow
	if got := p.run(t, one); !slices.Equal(got, whole[(length-1)*vocabulary:]) {
		t.Errorf("the last row alone differs from the last of all rows")
	}
	one.Rows = batching.NoRows
	if got := p.run(t, one); len(got) != 0 {
		t.Errorf("%d logits that nobody asked for", len(got))
	}
}

// AsServed checks a program without Exact, of a graph with weights of a format, against the reference's logits; that it
// gives the same ones again; that what a chunk or company changes about a token is within a mean divergence of 1e-3
// nats; and, where it is promised, that company changes nothing for a token that decodes.
func AsServed(t *testing.T, b backend.Backend, g *graph.Graph, w backend.Weights, served Served, d tensor.DType) {
	t.Helper()
	r := rand.New(rand.NewPCG(11, 12))
	vocabulary := g.Vocabulary()
	prompt := make([]int32, length)
	for i := range prompt {
		prompt[i] = r.Int32N(int32(vocabulary))
	}
	limits := backend.Limits{MaxTokens: 2 * length, MaxRows: 2 * length, BlockTokens: blockTokens, Blocks: blocks}
	p := compile(t, b, g, w, limits)
	want, _, err := Reference(g, w, prompt)
	if err != nil {
		t.Fatal(err)
	}
	table := func(from int) []int32 {
		ids := make([]int32, (length+blockTokens-1)/blockTokens)
		for i := range ids {
			ids[i] = int32((from + 5*i) % blocks)
		}
		return ids
	}
	whole := slices.Clone(p.run(t, span(0, prompt, table(0))))
	near(t, "served: logits", whole, want, 2*served.Off(d))
	if got := p.run(t, span(0, prompt, table(0))); !slices.Equal(got, whole) {
		t.Error("served: other logits the second time")
	}
	like := func(what string, got []float32) {
		t.Helper()
		if kl := divergence(whole, got, vocabulary); !(kl <= 1e-3) {
			t.Errorf("served, %s: a divergence of %g from one pass", what, kl)
		}
	}
	for _, chunk := range []int{1, 3, 5, 16, length - 1} {
		var got []float32
		for at := 0; at < length; at += chunk {
			got = append(got, p.run(t, span(at, prompt[at:min(at+chunk, length)], table(1)))...)
		}
		like(fmt.Sprintf("in chunks of %d", chunk), got)
	}
	// The same sequence many times, each at a place of its own, the first one also alone: positions
	// one after the other, some in one step.
	const company = 5
	var single, first []float32
	for at := range length {
		single = append(single, p.run(t, span(at, prompt[at:at+1], table(2)))...)
	}
	q := compile(t, b, g, w, backend.Limits{MaxTokens: 2 * length, MaxRows: 2 * length, BlockTokens: blockTokens, Blocks: company * length})
	for at := range length {
		var spans []batching.Span
		for c := range company {
			ids := make([]int32, (length+blockTokens-1)/blockTokens)
			for i := range ids {
				ids[i] = int32(i*company + c)
			}
			n := at + 1
			if c > 0 && at%2 == 1 { // the others skip a step and then make two
				continue
			}
			start := at
			if c > 0 {
				start = max(0, at-1)
			}
			spans = append(spans, span(start, prompt[start:n], ids))
		}
		first = append(first, q.run(t, spans...)[:vocabulary]...)
	}
	like("in company", first)
	if served.Alone(d) && !slices.Equal(first, single) {
		t.Error("served: the logits of a token that decodes depend on its company")
	}
}

// divergence is the mean KL of rows of logits from others, in nats.
func divergence(of, from []float32, vocabulary int) float64 {
	if len(of) != len(from) {
		return math.Inf(1)
	}
	softmax := func(row []float32) []float64 {
		most, sum := slices.Max(row), 0.0
		p := make([]float64, len(row))
		for i, x := range row {
			p[i] = math.Exp(float64(x) - float64(most))
			sum += p[i]
		}
		for i := range p {
			p[i] /= sum
		}
		return p
	}
	sum := 0.0
	for at := 0; at < len(of); at += vocabulary {
		p, q := softmax(of[at:at+vocabulary]), softmax(from[at:at+vocabulary])
		for i := range p {
			if p[i] > 0 {
				sum += p[i] * math.Log(p[i]/q[i])
			}
		}
	}
	return sum / float64(len(of)/vocabulary)
}

// encoderInputs are sequences for an encoder, and all of them in one step.
func encoderInputs(vocabulary int) (spans []batching.Span) {
	r := rand.New(rand.NewPCG(13, 14))
	for _, n := range []int{1, 43, 2, 70, 17} {
		tokens := make([]int32, n)
		for i := range tokens {
			tokens[i] = r.Int32N(int32(vocabulary))
		}
		spans = append(spans, span(0, tokens, nil))
	}
	return spans
}

// Encoder checks that an exact program of an encoder's graph gives the reference's hidden states within
// 1e-4, and the very same ones in company; and that it refuses to start within a sequence.
func Encoder(t *testing.T, b backend.Backend, g *graph.Graph, w backend.Weights, vocabulary int) {
	t.Helper()
	p := compile(t, b, g, w, backend.Limits{MaxTokens: 200, MaxRows: 200, Exact: true})
	p.out.WantHidden = true
	var all []float32
	together := encoderInputs(vocabulary)
	for _, s := range together {
		_, want, err := Reference(g, w, s.Tokens)
		if err != nil {
			t.Fatal(err)
		}
		p.run(t, s)
		near(t, fmt.Sprintf("hidden states of %d tokens", len(s.Tokens)), p.out.Hidden, want, 1e-4)
		if len(p.out.Logits) != 0 {
			t.Errorf("%d logits of an encoder", len(p.out.Logits))
		}
		all = append(all, p.out.Hidden...)
	}
	p.run(t, together...)
	if !slices.Equal(p.out.Hidden, all) {
		t.Error("in company: the hidden states differ from those of each alone")
	}
	late := span(1, together[0].Tokens, nil)
	if err := p.Run(context.Background(), batching.Batch{Spans: []batching.Span{late}}, &p.out); err == nil {
		t.Error("a span that starts within its sequence was taken")
	}
}

// encoderAsServed checks a program without Exact against the reference, within off.
func encoderAsServed(t *testing.T, b backend.Backend, g *graph.Graph, w backend.Weights, vocabulary int, off float64) {
	t.Helper()
	p := compile(t, b, g, w, backend.Limits{MaxTokens: 200, MaxRows: 200})
	p.out.WantHidden = true
	together := encoderInputs(vocabulary)
	for _, spans := range append([][]batching.Span{together}, together[:1], together[1:2], together[2:3]) {
		var want []float32
		for _, s := range spans {
			_, hidden, err := Reference(g, w, s.Tokens)
			if err != nil {
				t.Fatal(err)
			}
			want = append(want, hidden...)
		}
		p.run(t, spans...)
		near(t, fmt.Sprintf("hidden states of %d sequences", len(spans)), p.out.Hidden, want, off)
	}
	if p.run(t); len(p.out.Hidden) != 0 {
		t.Errorf("an empty batch gives %d hidden states", len(p.out.Hidden))
	}
}

// mixed multiplies one value by weights of several formats, as many rows as there may be.
func mixed(t *testing.T, b backend.Backend, off float64) {
	const vocabulary, width = 13, 256
	formats := map[string]tensor.DType{"f32": tensor.F32, "f16": tensor.F16, "bf16": tensor.BF16, "q8_0": tensor.Q8_0, "q4_k": tensor.Q4_K}
	var gb graph.Builder
	x := gb.Op(graph.Embed, graph.Attr{}, weight(&gb, "table", vocabulary, width))
	sum := x
	for _, name := range slices.Sorted(maps.Keys(formats)) {
		sum = gb.Op(graph.Add, graph.Attr{}, sum, gb.Op(graph.MatMul, graph.Attr{}, x, weight(&gb, name, width, width)))
	}
	h := gb.Op(graph.Rows, graph.Attr{}, sum)
	g, err := gb.Graph(h, h)
	if err != nil {
		t.Fatal(err)
	}
	w := func(name string) (tensor.Tensor, error) { return Stored(g, formats[name], 1)(name) }
	formats["table"] = tensor.F32
	tokens := make([]int32, 40)
	for i := range tokens {
		tokens[i] = int32(i % vocabulary)
	}
	_, want, err := Reference(g, w, tokens)
	if err != nil {
		t.Fatal(err)
	}
	p := compile(t, b, g, w, backend.Limits{MaxTokens: len(tokens), MaxRows: len(tokens), BlockTokens: 4, Blocks: 10})
	p.out.WantHidden = true
	blocks := []int32{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}
	for _, n := range []int{len(tokens), 9, 8, 1} {
		p.run(t, span(0, tokens[:n], blocks))
		near(t, fmt.Sprintf("%d rows", n), p.out.Hidden, want[:n*width], off)
	}
}

// sizes compares what a program says it holds with what is estimated from the configuration.
func sizes(t *testing.T, b backend.Backend) {
	for name, c := range shapes {
		g, err := arch.Build(c)
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range []backend.Limits{
			{MaxTokens: 1, MaxRows: 1, BlockTokens: 1, Blocks: 1},
			{MaxTokens: 64, MaxRows: 8, BlockTokens: 16, Blocks: 9},
		} {
			got := compile(t, b, g, Random(g, tensor.F16, 1), l).Bytes()
			var stored []graph.Stored
			uses := g.Uses()
			for i, w := range g.Weights {
				s := graph.Stored{Use: uses[i], DType: tensor.F16, Rows: 1, Cols: w.Shape[len(w.Shape)-1], Count: 1}
				if len(w.Shape) == 2 {
					s.Rows = w.Shape[0]
				}
				stored = append(stored, s)
			}
			want := backend.Bytes{
				Weights:   b.WeightsBytes(stored),
				KV:        int64(l.Blocks) * int64(l.BlockTokens) * arch.KVBytesPerToken(c),
				Workspace: arch.WorkspaceBytes(c, l.MaxTokens, l.MaxRows),
			}
			within := func(got, want int64) bool { return got <= want && got >= want-want/10 }
			if !within(got.Weights, want.Weights) || !within(got.KV, want.KV) || !within(got.Workspace, want.Workspace) {
				t.Errorf("%s, %+v: holds %+v, estimated %+v", name, l, got, want)
			}
		}
	}
}

// refusals are batches and weights that must be refused, after which the program runs on.
func refusals(t *testing.T, b backend.Backend) {
	g, err := arch.Build(shapes["one head"])
	if err != nil {
		t.Fatal(err)
	}
	w := Random(g, tensor.F32, 1)
	p := compile(t, b, g, w, backend.Limits{MaxTokens: 6, MaxRows: 4, BlockTokens: 4, Blocks: 3})
	good := span(0, []int32{1, 2, 3, 4}, []int32{1})
	want := slices.Clone(p.run(t, good))
	for name, c := range map[string]struct {
		spans []batching.Span
		text  string
	}{
		"no tokens":             {[]batching.Span{span(0, nil, []int32{0})}, "no tokens"},
		"negative start":        {[]batching.Span{span(-1, []int32{1}, []int32{0})}, "cover"},
		"start that overflows":  {[]batching.Span{span(math.MaxInt, []int32{1}, []int32{0})}, "cover"},
		"blocks too few":        {[]batching.Span{span(2, []int32{1, 2, 3}, []int32{0})}, "cover"},
		"no blocks":             {[]batching.Span{span(0, []int32{1}, nil)}, "cover"},
		"negative block":        {[]batching.Span{span(0, []int32{1}, []int32{-1})}, "block -1"},
		"block beyond":          {[]batching.Span{span(0, []int32{1}, []int32{3})}, "block 3 of 3"},
		"negative token":        {[]batching.Span{span(0, []int32{-1}, []int32{0})}, "vocabulary"},
		"token beyond":          {[]batching.Span{span(0, []int32{29}, []int32{0})}, "vocabulary"},
		"too many tokens":       {[]batching.Span{span(0, []int32{1, 2, 3, 4}, []int32{0}), span(0, []int32{1, 2, 3}, []int32{1})}, "7 tokens"},
		"too many rows":         {[]batching.Span{span(0, []int32{1, 2, 3, 4, 5}, []int32{0, 1})}, "5 rows"},
		"two writers":           {[]batching.Span{span(0, []int32{1}, []int32{0}), span(0, []int32{1}, []int32{0})}, "both write"},
		"second span is broken": {[]batching.Span{good, {Tokens: []int32{1}, Blocks: []int32{7}}}, "block 7"},
	} {
		err := p.Run(context.Background(), batching.Batch{Spans: c.spans}, &p.out)
		if err == nil || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: got %v, want an error with %q", name, err, c.text)
		}
	}
	if got := p.run(t, good); !slices.Equal(got, want) {
		t.Error("the logits changed after refused batches")
	}
	if got := p.run(t); len(got) != 0 {
		t.Errorf("an empty batch gives %d logits", len(got))
	}

	limits := backend.Limits{MaxTokens: 1, MaxRows: 1, BlockTokens: 1, Blocks: 1}
	for name, spoil := range map[string]func(*tensor.Tensor){
		"another shape":  func(t *tensor.Tensor) { t.Shape = tensor.Shape{29, 4} },
		"too few bytes":  func(t *tensor.Tensor) { t.Data = t.Data[1:] },
		"header only":    func(t *tensor.Tensor) { t.Data = nil },
		"unknown format": func(t *tensor.Tensor) { t.DType = tensor.Invalid },
	} {
		_, err := b.Compile(context.Background(), g, func(name string) (tensor.Tensor, error) {
			t, err := w(name)
			if name == "output" {
				spoil(&t)
			}
			return t, err
		}, limits)
		if err == nil || !strings.Contains(err.Error(), "output") {
			t.Errorf("%s: got %v, want an error that names the weight", name, err)
		}
	}
	lost := errors.New("lost")
	if _, err := b.Compile(context.Background(), g, func(string) (tensor.Tensor, error) { return tensor.Tensor{}, lost }, limits); !errors.Is(err, lost) {
		t.Errorf("weights that are lost: got %v", err)
	}
	for _, l := range []backend.Limits{{}, {MaxTokens: 1, MaxRows: 1, BlockTokens: 1, Blocks: -1}, {MaxTokens: 1, MaxRows: 1, BlockTokens: math.MaxInt / 2, Blocks: math.MaxInt / 2}} {
		if _, err := b.Compile(context.Background(), g, w, l); err == nil {
			t.Errorf("limits %+v were taken", l)
		}
	}
	broken := *g
	broken.Nodes = slices.Clone(g.Nodes)
	broken.Nodes[1].Kind = 99
	if _, err := b.Compile(context.Background(), &broken, w, limits); err == nil || !strings.Contains(err.Error(), "Kind(99)") {
		t.Errorf("a graph with an unknown op: got %v", err)
	}
}

// cancellation ends a step with the context's error; the same step works later.
func cancellation(t *testing.T, b backend.Backend) {
	g, err := arch.Build(shapes["one head"])
	if err != nil {
		t.Fatal(err)
	}
	p := compile(t, b, g, Random(g, tensor.F32, 1), backend.Limits{MaxTokens: 6, MaxRows: 6, BlockTokens: 4, Blocks: 3})
	s := span(0, []int32{1, 2, 3, 4, 5}, []int32{1, 2})
	want := slices.Clone(p.run(t, s))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := p.Run(ctx, batching.Batch{Spans: []batching.Span{s}}, &p.out); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %v", err)
	}
	if got := p.run(t, s); !slices.Equal(got, want) {
		t.Error("the logits changed after a cancelled step")
	}
}

// program runs batches in tests.
type program struct {
	backend.Program
	out backend.Out
}

func compile(t *testing.T, b backend.Backend, g *graph.Graph, w backend.Weights, l backend.Limits) *program {
	t.Helper()
	p, err := b.Compile(context.Background(), g, w, l)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return &program{Program: p}
}

// run gives the logits, which the next run overwrites.
func (p *program) run(t *testing.T, spans ...batching.Span) []float32 {
	t.Helper()
	if err := p.Run(context.Background(), batching.Batch{Spans: spans}, &p.out); err != nil {
		t.Fatal(err)
	}
	return p.out.Logits
}

// span wants all rows.
func span(start int, tokens, blocks []int32) batching.Span {
	return batching.Span{Tokens: tokens, Start: start, Blocks: blocks, Rows: batching.AllRows}
}

// near fails unless the error is within tolerance of the norm of want.
func near(t *testing.T, what string, got, want []float32, tolerance float64) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%s: %d numbers, want %d", what, len(got), len(want))
		return
	}
	var diff, norm float64
	for i := range want {
		diff += math.Pow(float64(got[i])-float64(want[i]), 2)
		norm += math.Pow(float64(want[i]), 2)
	}
	if !(math.Sqrt(diff) <= tolerance*math.Sqrt(norm)) {
		t.Errorf("%s: error %g of norm %g", what, math.Sqrt(diff), math.Sqrt(norm))
	}
}
