package arch

// qwen2HF reads the configuration of arXiv:2407.10671: llama with biases of queries, keys and
// values, and layers from some number on that attend to a sliding window. The graph is llama's.
func qwen2HF(f *fields, c *Config) {
	f.decoder(c)
	f.rope(c)
	f.windowFrom(c)
	c.QKVBias = true
}

func qwen2GGUF(p *pairs, c *Config) {
	p.decoder(c)
	p.rope(c)
	p.window(c)
	c.QKVBias = true
}
