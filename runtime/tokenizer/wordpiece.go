package tokenizer

import (
	"strings"
	"unicode/utf8"
)

// wordPiece takes the longest piece that a word starts with, then the longest that
// the rest starts with, and so on; a word that does not come out is unknown.
// Source: tokenizers' models/wordpiece.
type wordPiece struct {
	*vocabulary
	unknown int32
	prefix  string // of pieces within a word
	longest int    // bytes of a key
	most    int    // characters of a word that is tried
}

func (m *wordPiece) memory() int64 { return 0 }

func (m *wordPiece) encode(word string, ids []int32) []int32 {
	if utf8.RuneCountInString(word) > m.most {
		return append(ids, m.unknown)
	}
	known := len(ids)
	var buf [128]byte
	for start := 0; start < len(word); {
		key := buf[:0]
		if start > 0 {
			key = append(key, m.prefix...)
		}
		head := len(key)
		key = append(key, word[start:min(len(word), start+max(m.longest-head, 0))]...)
		found := false
		for len(key) > head {
			if next := start + len(key) - head; next == len(word) || utf8.RuneStart(word[next]) {
				if id, ok := m.find(string(key)); ok {
					ids, start, found = append(ids, id), next, true
					break
				}
			}
			key = key[:len(key)-1]
		}
		if !found {
			return append(ids[:known], m.unknown)
		}
	}
	return ids
}

// cleaned undoes the spaces that putting words together makes before punctuation and
// within English contractions.
var cleaned = [][2]string{
	{" .", "."}, {" ?", "?"}, {" !", "!"}, {" ,", ","}, {" ' ", "'"}, {" n't", "n't"}, {" 'm", "'m"},
	{" do not", " don't"}, {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"},
}

func clean(text string) string {
	for _, c := range cleaned {
		text = strings.ReplaceAll(text, c[0], c[1])
	}
	return text
}
