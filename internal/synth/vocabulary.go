package synth

import (
	"fmt"
)

// Types of tokens, as GGUF numbers them.
const (
	normalToken  = 1
	unknownToken = 2
	controlToken = 3
	byteToken    = 6
)

// vocabulary is a SentencePiece vocabulary of n tokens, n >= 400, that any text can be
// written in: the unknown token, begin, end, every byte, the printable characters,
// and for the rest words of one letter, of two, of three …, with a space in front
// and without. Every word is made of two shorter ones, so all can be reached by
// merging; shorter words have higher scores.
func vocabulary(n int) (tokens []string, scores []float32, types []int32) {
	add := func(text string, kind int32) {
		if len(tokens) < n {
			scores = append(scores, -float32(len(tokens)))
			tokens, types = append(tokens, text), append(types, kind)
		}
	}
	add("<unk>", unknownToken)
	add("<s>", controlToken)
	add("</s>", controlToken)
	for b := range 256 {
		add(fmt.Sprintf("<0x%02X>", b), byteToken)
	}
	const space = "▁"
	add(space, normalToken)
	for c := '!'; c <= '~'; c++ {
		add(string(c), normalToken)
	}
	for length := 1; len(tokens) < n; length++ {
		word := make([]byte, length)
		for i := range word {
			word[i] = 'a'
		}
		for more := true; more && len(tokens) < n; more = next(word) {
			add(space+string(word), normalToken)
			if length > 1 { // single letters are there
				add(string(word), normalToken)
			}
		}
	}
	return tokens, scores, types
}

// next counts in letters; false after the last word.
func next(word []byte) bool {
	for i := len(word) - 1; i >= 0; i-- {
		if word[i]++; word[i] <= 'z' {
			return true
		}
		word[i] = 'a'
	}
	return false
}
