package pattern

import (
	"cmp"
	"slices"
	"strings"
	"unicode"
)

// span is a range of characters, both ends included.
type span struct{ lo, hi rune }

// spans is a set of characters: sorted, disjoint and not touching.
type spans []span

var all = spans{{0, unicode.MaxRune}}

func spansOf(tables ...*unicode.RangeTable) spans {
	var s spans
	for _, t := range tables {
		for _, r := range t.R16 {
			s = s.stride(rune(r.Lo), rune(r.Hi), rune(r.Stride))
		}
		for _, r := range t.R32 {
			s = s.stride(rune(r.Lo), rune(r.Hi), rune(r.Stride))
		}
	}
	return s.tidy()
}

func (s spans) stride(lo, hi, stride rune) spans {
	if stride == 1 {
		return append(s, span{lo, hi})
	}
	for c := lo; c <= hi; c += stride {
		s = append(s, span{c, c})
	}
	return s
}

// tidy sorts and joins.
func (s spans) tidy() spans {
	slices.SortFunc(s, func(a, b span) int { return cmp.Compare(a.lo, b.lo) })
	out := s[:0]
	for _, r := range s {
		if n := len(out); n > 0 && r.lo <= out[n-1].hi+1 {
			out[n-1].hi = max(out[n-1].hi, r.hi)
			continue
		}
		out = append(out, r)
	}
	return out
}

func union(sets ...spans) spans { return slices.Concat(sets...).tidy() }

// not is every other character.
func (s spans) not() spans {
	var out spans
	next := rune(0)
	for _, r := range s {
		if next < r.lo {
			out = append(out, span{next, r.lo - 1})
		}
		next = r.hi + 1
	}
	if next <= unicode.MaxRune {
		out = append(out, span{next, unicode.MaxRune})
	}
	return out
}

// and is what both sets have.
func (s spans) and(o spans) spans { return union(s.not(), o.not()).not() }

func (s spans) has(r rune) bool {
	i, _ := slices.BinarySearchFunc(s, r, func(a span, r rune) int { return cmp.Compare(a.hi, r) })
	return i < len(s) && s[i].lo <= r
}

// cased are the characters that have others of another case.
var cased = spansOf(unicode.Lu, unicode.Ll, unicode.Lt, unicode.Other_Uppercase, unicode.Other_Lowercase, unicode.Mn)

// folded adds the other cases of what is there.
func (s spans) folded() spans {
	out := slices.Clone(s)
	for _, c := range s.and(cased) {
		for r := c.lo; r <= c.hi; r++ {
			for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
				if !s.has(f) {
					out = append(out, span{f, f})
				}
			}
		}
	}
	return out.tidy()
}

// category is a general category, such as "Lu", or the first letter of several.
func category(name string) spans {
	s := spansOf(unicode.Categories[name])
	for of, more := range newer {
		if strings.HasPrefix(of, name) {
			s = append(s, more...)
		}
	}
	return s.tidy()
}

// Oniguruma's classes for Unicode.
var (
	spaces  = spansOf(unicode.White_Space)
	digits  = category("Nd")
	letters = union(category("L"), category("Nl"), spansOf(unicode.Other_Alphabetic), newerAlphabetic)
	words   = union(letters, category("M"), digits, category("Pc"))
	// slashW is \w, which takes Latin 1's other numbers in; \b does so too.
	slashW = union(words, spans{{0xb2, 0xb3}, {0xb9, 0xb9}, {0xbc, 0xbe}})
	hexes  = spans{{'0', '9'}, {'A', 'F'}, {'a', 'f'}}
)

// property is what \p{name} stands for.
func property(name string) (spans, bool) {
	name = strings.ToLower(strings.NewReplacer(" ", "", "_", "", "-", "").Replace(name))
	assigned := func() spans {
		return union(category("L"), category("M"), category("N"), category("P"), category("S"), category("Z"))
	}
	switch name {
	case "any":
		return all, true
	case "cn", "unassigned":
		return union(assigned(), category("Cc"), category("Cf"), category("Co"), category("Cs")).not(), true
	case "c", "other": // with what is not assigned
		return assigned().not(), true
	case "alpha", "alphabetic":
		return letters, true
	case "alnum":
		return union(letters, digits), true
	case "digit":
		return digits, true
	case "space", "whitespace":
		return spaces, true
	case "word":
		return words, true
	case "punct":
		return category("P"), true
	case "upper", "uppercase":
		return union(category("Lu"), spansOf(unicode.Other_Uppercase)), true
	case "lower", "lowercase":
		return union(category("Ll"), spansOf(unicode.Other_Lowercase)), true
	case "cntrl":
		return category("Cc"), true
	case "xdigit":
		return hexes, true
	case "ascii":
		return spans{{0, 127}}, true
	case "han":
		return union(spansOf(unicode.Han), newerHan), true
	}
	if c, ok := categories[name]; ok {
		return category(c), true
	}
	t, ok := scripts[name]
	if !ok {
		return nil, false
	}
	return spansOf(t), true
}

// scripts by their names in lower case.
var scripts = func() map[string]*unicode.RangeTable {
	m := map[string]*unicode.RangeTable{}
	for name, t := range unicode.Scripts {
		m[strings.ReplaceAll(strings.ToLower(name), "_", "")] = t
	}
	return m
}()

// categories by both of their names in lower case.
var categories = func() map[string]string {
	m := map[string]string{}
	for short, long := range map[string]string{
		"L": "letter", "Lu": "uppercaseletter", "Ll": "lowercaseletter", "Lt": "titlecaseletter", "Lm": "modifierletter", "Lo": "otherletter",
		"M": "mark", "Mn": "nonspacingmark", "Mc": "spacingmark", "Me": "enclosingmark",
		"N": "number", "Nd": "decimalnumber", "Nl": "letternumber", "No": "othernumber",
		"P": "punctuation", "Pc": "connectorpunctuation", "Pd": "dashpunctuation", "Ps": "openpunctuation", "Pe": "closepunctuation",
		"Pi": "initialpunctuation", "Pf": "finalpunctuation", "Po": "otherpunctuation",
		"S": "symbol", "Sm": "mathsymbol", "Sc": "currencysymbol", "Sk": "modifiersymbol", "So": "othersymbol",
		"Z": "separator", "Zs": "spaceseparator", "Zl": "lineseparator", "Zp": "paragraphseparator",
		"Cc": "control", "Cf": "format", "Co": "privateuse", "Cs": "surrogate",
	} {
		m[strings.ToLower(short)], m[long] = short, short
	}
	return m
}()

// set answers whether a character is in it: a large one by two look-ups, where
// blocks of 256 characters that are alike are kept once.
type set struct {
	ascii  [2]uint64
	index  []uint8 // character / 256 -> blocks; a property needs some hundred of them; nil for a small set
	blocks [][4]uint64
	spans  spans
}

func newSet(s spans) *set {
	b := &set{spans: s}
	for r := range rune(128) {
		if s.has(r) {
			b.ascii[r>>6] |= 1 << (r & 63)
		}
	}
	if len(s) > 8 {
		b.build()
	}
	return b
}

func (b *set) build() {
	index := make([]uint8, (unicode.MaxRune+1)/256)
	seen := map[[4]uint64]uint8{}
	s := b.spans
	for i := range index {
		lo, hi := rune(i*256), rune(i*256+255)
		for len(s) > 0 && s[0].hi < lo {
			s = s[1:]
		}
		var block [4]uint64
		for j := 0; j < len(s) && s[j].lo <= hi; j++ {
			for r := max(s[j].lo, lo); r <= min(s[j].hi, hi); r++ {
				block[r&255>>6] |= 1 << (r & 63)
			}
		}
		at, ok := seen[block]
		if !ok {
			if len(b.blocks) == 256 { // more than any property has: searched like a small one
				b.blocks = nil
				return
			}
			at = uint8(len(b.blocks))
			seen[block], b.blocks = at, append(b.blocks, block)
		}
		index[i] = at
	}
	b.index = index
}

func (b *set) has(r rune) bool {
	if r < 128 {
		return b.ascii[r>>6]>>(r&63)&1 != 0
	}
	if b.index == nil {
		return b.spans.has(r)
	}
	return b.blocks[b.index[r>>8]][r&255>>6]>>(r&63)&1 != 0
}
