package server

import "github.com/estiba/estiba/runtime/tokenizer"

// decoder decodes a text that goes on after a prompt.
func decoder(t *tokenizer.Tokenizer, _ bool, prompt []int32) *tokenizer.Stream {
	return t.Stream(prompt...)
}

// chatIDs are the ids of a rendered chat.
func chatIDs(t *tokenizer.Tokenizer, text string, _ [][2]int) []int32 { return t.Encode(text, false) }

// pieceOf is a token as the tokenizer's files write it.
func pieceOf(t *tokenizer.Tokenizer, id int32) string { return t.Decode([]int32{id}, true) }

// bytesOf is what a token adds to a text.
func bytesOf(t *tokenizer.Tokenizer, id int32) ([]byte, bool) {
	within := t.Stream(t.Encode("a", false)...)
	text := within.Push(id) + within.Flush()
	return []byte(text), text != ""
}
