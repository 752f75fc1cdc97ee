package arch

// mistralHF reads the configuration of arXiv:2310.06825: llama whose layers attend to a sliding
// window of positions. The graph is llama's.
func mistralHF(f *fields, c *Config) {
	f.decoder(c)
	f.rope(c)
	f.window(c)
}
