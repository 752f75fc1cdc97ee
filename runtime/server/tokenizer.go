package server

import "github.com/estiba/estiba/runtime/tokenizer"

// decoder decodes a text that goes on after a prompt.
func decoder(t *tokenizer.Tokenizer, special bool, prompt []int32) *tokenizer.Stream {
	return t.Stream(special, prompt...)
}

// chatIDs are the ids of a rendered chat.
func chatIDs(t *tokenizer.Tokenizer, text string, users [][2]int) []int32 {
	return t.EncodeChat(text, users)
}

// pieceOf is a token as the tokenizer's files write it.
func pieceOf(t *tokenizer.Tokenizer, id int32) string { return t.Text(id) }

// bytesOf is what a token adds to a text.
func bytesOf(t *tokenizer.Tokenizer, id int32) ([]byte, bool) { return t.TokenBytes(id) }
