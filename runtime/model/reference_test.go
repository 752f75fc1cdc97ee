package model_test

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/estiba/estiba/internal/fixture"
)

// reference computes a checkpoint of any family in float64 from its Hugging Face tensors, straight from the papers
// and without anything of the graph: a whole sequence, every position's keys and values in plain slices. It gives the
// logits of every position (the last hidden states of bert's), and the residual stream after the embedding and each layer.
type reference struct {
	c fixture.Config
	w map[string]fixture.Array
}

type rows = [][]float64

func (r reference) run(ids []int32) (out rows, residuals []rows) {
	if r.c.Kind() == "bert" {
		return r.bert(ids)
	}
	c := r.c
	gemma := c.Kind() == "gemma2"
	x := make(rows, len(ids))
	for t, id := range ids {
		x[t] = slices.Clone(r.row("model.embed_tokens.weight", int(id)))
		if gemma {
			for i := range x[t] {
				x[t][i] *= math.Sqrt(float64(c.Int("hidden_size", 0)))
			}
		}
	}
	residuals = append(residuals, copyRows(x))
	for l := range c.Int("num_hidden_layers", 0) {
		at := fmt.Sprintf("model.layers.%d.", l)
		y := r.attention(l, at, r.norm(x, at+"input_layernorm.weight"))
		if gemma {
			y = r.norm(y, at+"post_attention_layernorm.weight")
		}
		x = sum(x, y)
		before, after := at+"post_attention_layernorm.weight", ""
		if gemma {
			before, after = at+"pre_feedforward_layernorm.weight", at+"post_feedforward_layernorm.weight"
		}
		y = r.feedForward(l, at, r.norm(x, before))
		if after != "" {
			y = r.norm(y, after)
		}
		x = sum(x, y)
		residuals = append(residuals, copyRows(x))
	}
	h := r.norm(x, "model.norm.weight")
	output := "lm_head"
	if c.On("tie_word_embeddings") {
		output = "model.embed_tokens"
	}
	out = r.linear(h, output)
	if limit, ok := c["final_logit_softcapping"].(float64); ok && gemma {
		for _, row := range out {
			for i := range row {
				row[i] = limit * math.Tanh(row[i]/limit)
			}
		}
	}
	return out, residuals
}

func (r reference) attention(l int, at string, h rows) rows {
	c := r.c
	heads, dim := c.Int("num_attention_heads", 0), c.HeadDim()
	kvHeads := c.Int("num_key_value_heads", heads)
	var q, k, v rows
	if c.Kind() == "phi3" {
		for _, row := range r.linear(h, at+"self_attn.qkv_proj") {
			q, k, v = append(q, row[:heads*dim]), append(k, row[heads*dim:(heads+kvHeads)*dim]), append(v, row[(heads+kvHeads)*dim:])
		}
	} else {
		q, k, v = r.linear(h, at+"self_attn.q_proj"), r.linear(h, at+"self_attn.k_proj"), r.linear(h, at+"self_attn.v_proj")
	}
	if strings.HasPrefix(c.Kind(), "qwen3") {
		q, k = r.headNorm(q, at+"self_attn.q_norm.weight"), r.headNorm(k, at+"self_attn.k_norm.weight")
	}
	q, k = r.rope(q), r.rope(k)
	scale := math.Pow(float64(dim), -0.5)
	if x, ok := c["query_pre_attn_scalar"].(int); ok {
		scale = math.Pow(float64(x), -0.5)
	}
	window := r.window(l)
	softCap, _ := c["attn_logit_softcapping"].(float64)
	out := make(rows, len(h))
	for t := range h {
		out[t] = make([]float64, heads*dim)
		for head := range heads {
			kv := head * kvHeads / heads
			from := 0
			if window > 0 {
				from = max(0, t-window+1)
			}
			weights := make([]float64, 0, t+1)
			for s := from; s <= t; s++ {
				score := scale * dot(q[t][head*dim:(head+1)*dim], k[s][kv*dim:(kv+1)*dim])
				if softCap != 0 {
					score = softCap * math.Tanh(score/softCap)
				}
				weights = append(weights, score)
			}
			softmax(weights)
			for i, p := range weights {
				for j := range dim {
					out[t][head*dim+j] += p * v[from+i][kv*dim+j]
				}
			}
		}
	}
	return r.linear(out, at+"self_attn.o_proj")
}

// window of a layer, 0 for none.
func (r reference) window(l int) int {
	c := r.c
	n := c.Int("sliding_window", 0)
	if types, ok := c["layer_types"].([]string); ok {
		if types[l] == "sliding_attention" {
			return n
		}
		return 0
	}
	switch c.Kind() {
	case "mistral", "mixtral", "phi3":
		return n
	case "gemma2":
		return n * (1 - l%2)
	case "qwen2", "qwen3":
		if c.On("use_sliding_window") && l >= c.Int("max_window_layers", 28) {
			return n
		}
	case "qwen3_moe":
		if c.On("use_sliding_window") {
			return n
		}
	}
	return 0
}

// rope rotates each head of each row by its position.
func (r reference) rope(x rows) rows {
	dim := r.c.HeadDim()
	part := dim
	if f, ok := r.c["partial_rotary_factor"].(float64); ok {
		part = int(f * float64(dim))
	}
	frequencies, amplitude := r.frequencies(part)
	y := copyRows(x)
	for t, row := range y {
		for h := 0; h < len(row); h += dim {
			for i, f := range frequencies {
				a, b := row[h+i], row[h+i+part/2]
				sin, cos := math.Sincos(float64(t) * f)
				row[h+i], row[h+i+part/2] = amplitude*(a*cos-b*sin), amplitude*(b*cos+a*sin)
			}
		}
	}
	return y
}

func (r reference) frequencies(dims int) (f []float64, amplitude float64) {
	theta, ok := r.c["rope_theta"].(float64)
	scaling, _ := r.c["rope_scaling"].(map[string]any)
	if p, has := r.c["rope_parameters"].(map[string]any); has {
		scaling = p
		if x, has := p["rope_theta"].(float64); has {
			theta, ok = x, true
		}
	}
	if !ok {
		theta = 10000
	}
	for i := 0; i < dims; i += 2 {
		f = append(f, 1/math.Pow(theta, float64(i)/float64(dims)))
	}
	number := func(name string, def float64) float64 {
		switch x := scaling[name].(type) {
		case float64:
			return x
		case int:
			return float64(x)
		}
		return def
	}
	factor := number("factor", 1)
	original := number("original_max_position_embeddings", float64(r.c.Int("max_position_embeddings", 0)))
	amplitude = 1
	switch kind, _ := scaling["rope_type"].(string); kind {
	case "linear":
		for i := range f {
			f[i] /= factor
		}
	case "llama3":
		low, high := number("low_freq_factor", 0), number("high_freq_factor", 0)
		for i := range f {
			wave := 2 * math.Pi / f[i]
			switch {
			case wave > original/low:
				f[i] /= factor
			case wave >= original/high:
				smooth := (original/wave - low) / (high - low)
				f[i] = (1-smooth)*f[i]/factor + smooth*f[i]
			}
		}
	case "yarn":
		dimension := func(turns float64) float64 {
			return float64(dims) * math.Log(original/(turns*2*math.Pi)) / (2 * math.Log(theta))
		}
		low, high := dimension(number("beta_fast", 32)), dimension(number("beta_slow", 1))
		if truncate, has := scaling["truncate"].(bool); !has || truncate {
			low, high = math.Floor(low), math.Ceil(high)
		}
		low, high = math.Max(low, 0), math.Min(high, float64(dims-1))
		if low == high {
			high += 0.001
		}
		for i := range f {
			ramp := math.Min(math.Max((float64(i)-low)/(high-low), 0), 1)
			f[i] = f[i]/factor*ramp + f[i]*(1-ramp)
		}
		amplitude = number("attention_factor", 0.1*math.Log(factor)+1)
		if m, all := number("mscale", 0), number("mscale_all_dim", 0); m != 0 && all != 0 {
			amplitude = (0.1*m*math.Log(factor) + 1) / (0.1*all*math.Log(factor) + 1)
		}
	case "longrope":
		for i, d := range scaling["short_factor"].([]float64) {
			f[i] /= d
		}
		before := float64(r.c.Int("original_max_position_embeddings", 0))
		amplitude = math.Sqrt(1 + math.Log(float64(r.c.Int("max_position_embeddings", 0))/before)/math.Log(before))
	}
	return f, amplitude
}

func (r reference) feedForward(l int, at string, h rows) rows {
	c := r.c
	if c.Kind() == "mixtral" {
		return r.mixture(h, at+"block_sparse_moe.gate", c.Int("num_local_experts", 0), true, func(e int, x rows) rows {
			expert := fmt.Sprintf("%sblock_sparse_moe.experts.%d.", at, e)
			return r.linear(gated(r.linear(x, expert+"w1"), r.linear(x, expert+"w3"), silu), expert+"w2")
		})
	}
	if c.Kind() == "qwen3_moe" && c.Sparse(l) {
		return r.mixture(h, at+"mlp.gate", c.Int("num_experts", 0), c.On("norm_topk_prob"), func(e int, x rows) rows {
			expert := fmt.Sprintf("%smlp.experts.%d.", at, e)
			return r.linear(gated(r.linear(x, expert+"gate_proj"), r.linear(x, expert+"up_proj"), silu), expert+"down_proj")
		})
	}
	var gate, up rows
	if c.Kind() == "phi3" {
		for _, row := range r.linear(h, at+"mlp.gate_up_proj") {
			gate, up = append(gate, row[:len(row)/2]), append(up, row[len(row)/2:])
		}
	} else {
		gate, up = r.linear(h, at+"mlp.gate_proj"), r.linear(h, at+"mlp.up_proj")
	}
	f := silu
	if c.Kind() == "gemma2" {
		f = geluTanh
	}
	return r.linear(gated(gate, up, f), at+"mlp.down_proj")
}

func (r reference) mixture(h rows, router string, experts int, normalize bool, expert func(e int, x rows) rows) rows {
	topK := r.c.Int("num_experts_per_tok", 0)
	out := make(rows, len(h))
	for t, shares := range r.linear(h, router) {
		softmax(shares)
		order := make([]int, experts)
		for e := range order {
			order[e] = e
		}
		slices.SortFunc(order, func(a, b int) int {
			if shares[a] > shares[b] {
				return -1
			}
			return 1
		})
		total := 1.0
		if normalize {
			total = 0
			for _, e := range order[:topK] {
				total += shares[e]
			}
		}
		out[t] = make([]float64, len(h[t]))
		for _, e := range order[:topK] {
			for i, y := range expert(e, rows{h[t]})[0] {
				out[t][i] += shares[e] / total * y
			}
		}
	}
	return out
}

func (r reference) bert(ids []int32) (out rows, residuals []rows) {
	c := r.c
	heads, dim := c.Int("num_attention_heads", 0), c.HeadDim()
	x := make(rows, len(ids))
	for t, id := range ids {
		x[t] = sum(rows{r.row("embeddings.word_embeddings.weight", int(id))}, rows{r.row("embeddings.position_embeddings.weight", t)})[0]
		x[t] = sum(rows{x[t]}, rows{r.row("embeddings.token_type_embeddings.weight", 0)})[0]
	}
	x = r.layerNorm(x, "embeddings.LayerNorm")
	residuals = append(residuals, x)
	for l := range c.Int("num_hidden_layers", 0) {
		at := fmt.Sprintf("encoder.layer.%d.", l)
		q, k, v := r.linear(x, at+"attention.self.query"), r.linear(x, at+"attention.self.key"), r.linear(x, at+"attention.self.value")
		y := make(rows, len(x))
		for t := range x {
			y[t] = make([]float64, heads*dim)
			for h := range heads {
				weights := make([]float64, len(x))
				for s := range x {
					weights[s] = dot(q[t][h*dim:(h+1)*dim], k[s][h*dim:(h+1)*dim]) / math.Sqrt(float64(dim))
				}
				softmax(weights)
				for s, p := range weights {
					for j := range dim {
						y[t][h*dim+j] += p * v[s][h*dim+j]
					}
				}
			}
		}
		x = r.layerNorm(sum(x, r.linear(y, at+"attention.output.dense")), at+"attention.output.LayerNorm")
		up := r.linear(x, at+"intermediate.dense")
		for _, row := range up {
			for i, u := range row {
				if c["hidden_act"] == "gelu_new" {
					row[i] = geluTanh(u)
				} else {
					row[i] = u * (1 + math.Erf(u/math.Sqrt2)) / 2
				}
			}
		}
		x = r.layerNorm(sum(x, r.linear(up, at+"output.dense")), at+"output.LayerNorm")
		residuals = append(residuals, x)
	}
	return x, residuals
}

func (r reference) tensor(name string) fixture.Array {
	a, ok := r.w[name]
	if !ok {
		panic("no tensor " + name)
	}
	return a
}

func (r reference) row(name string, i int) []float64 {
	a := r.tensor(name)
	return a.Data[i*a.Shape[1] : (i+1)*a.Shape[1]]
}

func (r reference) linear(x rows, name string) rows {
	w := r.tensor(name + ".weight")
	bias, biased := r.w[name+".bias"]
	y := make(rows, len(x))
	for t := range x {
		y[t] = make([]float64, w.Shape[0])
		for i := range y[t] {
			y[t][i] = dot(x[t], w.Data[i*w.Shape[1]:(i+1)*w.Shape[1]])
			if biased {
				y[t][i] += bias.Data[i]
			}
		}
	}
	return y
}

func (r reference) norm(x rows, name string) rows {
	w := r.tensor(name).Data
	y := copyRows(x)
	for t, row := range x {
		scale := 1 / math.Sqrt(dot(row, row)/float64(len(row))+r.c["rms_norm_eps"].(float64))
		for i := range row {
			g := w[i]
			if r.c.Kind() == "gemma2" {
				g++
			}
			y[t][i] = row[i] * scale * g
		}
	}
	return y
}

func (r reference) headNorm(x rows, name string) rows {
	dim := r.c.HeadDim()
	y := copyRows(x)
	for t, row := range x {
		for h := 0; h < len(row); h += dim {
			copy(y[t][h:], r.norm(rows{row[h : h+dim]}, name)[0])
		}
	}
	return y
}

func (r reference) layerNorm(x rows, name string) rows {
	w, b := r.tensor(name+".weight").Data, r.tensor(name+".bias").Data
	y := copyRows(x)
	for t, row := range x {
		mean, variance := 0.0, 0.0
		for _, v := range row {
			mean += v / float64(len(row))
		}
		for _, v := range row {
			variance += (v - mean) * (v - mean) / float64(len(row))
		}
		for i := range row {
			y[t][i] = (row[i]-mean)/math.Sqrt(variance+r.c["layer_norm_eps"].(float64))*w[i] + b[i]
		}
	}
	return y
}

func gated(gate, up rows, f func(float64) float64) rows {
	y := copyRows(up)
	for t := range y {
		for i := range y[t] {
			y[t][i] *= f(gate[t][i])
		}
	}
	return y
}

func silu(x float64) float64 { return x / (1 + math.Exp(-x)) }

func geluTanh(x float64) float64 {
	return 0.5 * x * (1 + math.Tanh(math.Sqrt(2/math.Pi)*(x+0.044715*x*x*x)))
}

func dot(x, y []float64) float64 {
	sum := 0.0
	for i := range x {
		sum += x[i] * y[i]
	}
	return sum
}

func softmax(x []float64) {
	largest, sum := slices.Max(x), 0.0
	for i := range x {
		x[i] = math.Exp(x[i] - largest)
		sum += x[i]
	}
	for i := range x {
		x[i] /= sum
	}
}

func sum(x, y rows) rows {
	z := copyRows(x)
	for t := range z {
		for i := range z[t] {
			z[t][i] += y[t][i]
		}
	}
	return z
}

func copyRows(x rows) rows {
	y := make(rows, len(x))
	for t := range x {
		y[t] = slices.Clone(x[t])
	}
	return y
}
