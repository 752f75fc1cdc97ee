package tokenizer

// ggufSplit is what a name in tokenizer.ggml.pre stands for: the splits of a byte-level
// vocabulary, one after the other.
type ggufSplit struct {
	patterns []string
	wholes   bool // a part that is a token is not merged
	bos      bool // a begin token goes in front unless the file says no
}

// Expressions of more than one name. Those that llama.cpp can only come near to are
// here as the models' own tokenizers have them.
const (
	contractions = `(?i:'s|'t|'re|'ve|'m|'ll|'d)`
	afterNumbers = `| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
	llama3Split  = contractions + `|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}` + afterNumbers
	qwen2Split   = contractions + `|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}` + afterNumbers
	upperLower   = `[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+`
	lowerUpper   = `[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*`
	afterSlash   = `| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+`
	o200kSplit   = upperLower + contractions + `?|` + lowerUpper + contractions + `?|\p{N}{1,3}` + afterSlash
	tekkenSplit  = upperLower + `|` + lowerUpper + `|\p{N}` + afterSlash
	deepseekCJK  = `[\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+`
	deepseekText = "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|" +
		`[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
	bloomSplit = ` ?[^(\s|.,!?…。，、।۔،)]+`
	// deepseekLetters are those with cases, of Unicode 11.
	deepseekLetters = `\s?[A-Za-z\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF}\x{1C4}-\x{293}\x{295}-\x{2AF}\x{370}-\x{373}\x{376}` +
		`\x{377}\x{37B}-\x{37D}\x{37F}\x{386}\x{388}-\x{38A}\x{38C}\x{38E}-\x{3A1}\x{3A3}-\x{3F5}\x{3F7}-\x{481}\x{48A}-\x{52F}\x{531}-\x{556}` +
		`\x{10A0}-\x{10C5}\x{13A0}-\x{13F5}\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}\x{1D79}-\x{1D9A}` +
		`\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}\x{1F5D}\x{1F5F}-\x{1F7D}` +
		`\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}` +
		`\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}\x{2102}\x{2107}\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124}\x{2126}\x{2128}\x{212A}-\x{212D}` +
		`\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F}\x{2145}-\x{2149}\x{214E}\x{2183}\x{2184}\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}\x{2CEB}-\x{2CEE}` +
		`\x{2CF2}\x{2CF3}\x{A640}-\x{A66D}\x{A680}-\x{A69B}\x{A722}-\x{A76F}\x{A771}-\x{A787}\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF}\x{FB00}-\x{FB06}` +
		`\x{FB13}-\x{FB17}\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A}\x{10400}-\x{1044F}\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}` +
		`\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF}\x{1E900}-\x{1E943}]+`
	deepseekWide = `[\x{4E00}-\x{9FA5}\x{800}-\x{4E00}\x{AC00}-\x{D7FF}]+`
)

// ggufSplits by the names of tokenizer.ggml.pre.
// Source: llama.cpp's src/llama-vocab.cpp.
var ggufSplits = func() map[string]ggufSplit {
	all := map[string]ggufSplit{}
	set := func(s ggufSplit, names ...string) {
		for _, name := range names {
			all[name] = s
		}
	}
	one := func(patterns ...string) ggufSplit { return ggufSplit{patterns: patterns} }
	set(one("[\\p{P}\\$\\+<=>\\^~\\|]+", gpt2, `\p{N}+`, "[0-9][0-9][0-9]"), "default")
	set(one("[\\p{P}\\$\\+<=>\\^~\\|`]+", gpt2, "[0-9][0-9][0-9]"), "falcon")
	set(one(gpt2), "gpt-2", "phi-2", "mpt", "olmo", "jais", "jina-es", "jina-de", "jina-v1-en", "jina-v2-es", "jina-v2-de", "jina-v2-code", "roberta-bpe",
		"gigachat", "a.x-4.0", "mellum", "modern-bert", "trillion", "granite-docling", "exaone4")
	set(one(`\p{N}`, gpt2), "starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b", "mellum2")
	set(ggufSplit{patterns: []string{llama3Split}, wholes: true, bos: true}, "llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano")
	set(one(llama3Split), "dbrx", "smaug-bpe", "chatglm-bpe", "glm4")
	set(one(qwen2Split), "qwen2", "stablelm2", "deepseek-r1-qwen", "megrez", "hunyuan", "solar-open", "grok-2", "kormo", "f2llmv2")
	set(one(contractions+`|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`), "qwen35")
	set(one(`[\r\n]`, deepseekLetters, `\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3000}-\x{3002}]+`, `\s+\z`, deepseekWide, `\p{N}+`), "deepseek-llm")
	set(one(`[\r\n]`, `\s?\p{L}+`, `\s?\p{P}+`, deepseekWide, `\p{N}`), "deepseek-coder")
	set(one(`\p{N}{1,3}`, deepseekCJK, deepseekText), "deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4")
	set(one(o200kSplit), "gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2")
	set(ggufSplit{patterns: []string{tekkenSplit}, wholes: true, bos: true}, "tekken")
	set(one(bloomSplit), "bloom", "poro-chat", "gpt3-finnish")
	set(one(bloomSplit, `\p{N}`), "viking")
	set(one(`'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+`), "bailingmoe", "bailingmoe2", "llada-moe")
	set(one(contractions+`|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+`), "seed-coder")
	set(one(contractions+`|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+`), "exaone-moe")
	set(one(`\d{1,3}(?=(?:\d{3})*\b)`, o200kSplit), "tiny_aya", "cohere2moe")
	set(one(`\p{N}+`, `(?=(\d{3})+(?!\d))`), "superbpe")
	set(ggufSplit{patterns: []string{`\p{N}{1,3}`, contractions + `|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+` + afterNumbers}, wholes: true}, "minicpm5")
	return all
}()
