package template

import (
	"sort"
	"strings"
	"unicode"
	"unicode/utf8"
)

// text is Python's str that knows which of its bytes came from outside of the
// template. Cutting and joining keep that knowledge, so that it arrives with the
// bytes in what is rendered.
type text struct {
	s     string   // UTF-8
	plain [][2]int // ranges of s that users wrote: sorted, disjoint, not touching, not empty
	safe  bool     // Jinja's Markup: "+" escapes what is joined to it
}

// literal is a text of the template.
func literal(s string) text { return text{s: s} }

// written is a text of users.
func written(s string) text {
	if s == "" {
		return text{}
	}
	return text{s: s, plain: [][2]int{{0, len(s)}}}
}

// as gives s the origin of t as a whole: written by users if any of t is.
func (t text) as(s string) text {
	if len(t.plain) > 0 {
		return written(s)
	}
	return literal(s)
}

// uniform says whether all of t has one origin, and whether users are that.
func (t text) uniform() (plain, ok bool) {
	if len(t.plain) == 0 {
		return false, true
	}
	return true, t.plain[0] == [2]int{0, len(t.s)}
}

// cut is t.s[from:to].
func (t text) cut(from, to int) text {
	part := text{s: t.s[from:to], safe: t.safe}
	first := sort.Search(len(t.plain), func(i int) bool { return t.plain[i][1] > from })
	last := first + sort.Search(len(t.plain)-first, func(i int) bool { return t.plain[first+i][0] >= to })
	part.plain = make([][2]int, 0, last-first)
	for _, p := range t.plain[first:last] {
		part.plain = append(part.plain, [2]int{max(p[0], from) - from, min(p[1], to) - from})
	}
	return part
}

// pieces calls f with the parts of t that have one origin each.
func (t text) pieces(f func(s string, plain bool)) {
	at := 0
	for _, p := range t.plain {
		if p[0] > at {
			f(t.s[at:p[0]], false)
		}
		f(t.s[p[0]:p[1]], true)
		at = p[1]
	}
	if at < len(t.s) {
		f(t.s[at:], false)
	}
}

// builder joins texts. What it takes is charged to the state's memory.
type builder struct {
	x     *state
	buf   strings.Builder
	plain [][2]int
}

func (b *builder) add(t text) {
	b.x.charge(len(t.s) + 16*len(t.plain))
	at := b.buf.Len()
	b.buf.WriteString(t.s)
	for _, p := range t.plain {
		b.mark(at+p[0], at+p[1])
	}
}

func (b *builder) write(s string, plain bool) {
	b.x.charge(len(s))
	at := b.buf.Len()
	b.buf.WriteString(s)
	if plain && s != "" {
		b.mark(at, at+len(s))
	}
}

func (b *builder) literal(s string) { b.write(s, false) }

func (b *builder) mark(from, to int) {
	if last := len(b.plain) - 1; last >= 0 && b.plain[last][1] == from {
		b.plain[last][1] = to
		return
	}
	b.plain = append(b.plain, [2]int{from, to})
}

func (b *builder) text() text { return text{s: b.buf.String(), plain: b.plain} }

// convert gives each part of t to f, which must not depend on what is around it.
func (x *state) convert(t text, f func(string) string) text {
	if plain, ok := t.uniform(); ok {
		s := f(t.s)
		x.charge(len(s))
		if plain {
			return text{s: s, plain: written(s).plain, safe: t.safe}
		}
		return text{s: s, safe: t.safe}
	}
	b := builder{x: x}
	t.pieces(func(s string, plain bool) { b.write(f(s), plain) })
	out := b.text()
	out.safe = t.safe
	return out
}

// escapeEach writes t with each character replaced by what f says.
func (b *builder) escapeEach(t text, f func(rune) (string, bool)) {
	t.pieces(func(s string, plain bool) {
		kept := 0
		for i, r := range s {
			if to, ok := f(r); ok {
				b.write(s[kept:i], plain)
				b.write(to, plain)
				kept = i + utf8.RuneLen(r)
			}
		}
		b.write(s[kept:], plain)
	})
}

func (x *state) join(parts ...text) text {
	b := builder{x: x}
	for _, p := range parts {
		b.add(p)
	}
	return b.text()
}

// repeat is t * n.
func (x *state) repeat(t text, n int64) text {
	if n <= 0 || t.s == "" {
		return text{safe: t.safe}
	}
	if n > int64(x.memory)/int64(len(t.s))+1 {
		x.charge(x.memory + 1)
	}
	b := builder{x: x}
	for range n {
		x.step(1)
		b.add(t)
	}
	out := b.text()
	out.safe = t.safe
	return out
}

// length is the number of characters.
func (t text) length() int { return utf8.RuneCountInString(t.s) }

// offset is where character i of s begins; i is from 0 to the length.
func offset(s string, i int) int {
	at := 0
	for ; i > 0 && at < len(s); i-- {
		_, n := utf8.DecodeRuneInString(s[at:])
		at += n
	}
	return at
}

// isSpace is str.isspace of one character.
func isSpace(r rune) bool { return unicode.IsSpace(r) || 0x1c <= r && r <= 0x1f }

func (t text) stripLeft(f func(rune) bool) text {
	return t.cut(len(t.s)-len(strings.TrimLeftFunc(t.s, f)), len(t.s))
}

func (t text) stripRight(f func(rune) bool) text {
	return t.cut(0, len(strings.TrimRightFunc(t.s, f)))
}

func (t text) strip(f func(rune) bool) text { return t.stripRight(f).stripLeft(f) }

// slice is t[start:stop:step] with the bounds of indices.
func (x *state) slice(t text, start, stop, step int) text {
	if step == 1 {
		if stop <= start {
			return text{safe: t.safe}
		}
		if isASCII(t.s) {
			x.read(t)
			return t.cut(start, stop)
		}
		x.step(len(t.s) / 4)
		from := offset(t.s, start)
		return t.cut(from, from+offset(t.s[from:], stop-start))
	}
	starts := make([]int, 0, len(t.s)+1) // of characters
	x.charge(8 * cap(starts))
	for i := range t.s {
		starts = append(starts, i)
	}
	starts = append(starts, len(t.s))
	b := builder{x: x}
	for i := start; step > 0 && i < stop || step < 0 && i > stop; i += step {
		b.add(t.cut(starts[i], starts[i+1]))
	}
	out := b.text()
	out.safe = t.safe
	return out
}

// split cuts t at each sep, at most most times from the left if most is not
// negative; from the right with right.
func (x *state) split(t text, sep string, most int64, right bool) []text {
	var parts []text
	if right {
		end := len(t.s)
		for most != 0 {
			i := strings.LastIndex(t.s[:end], sep)
			if i < 0 {
				break
			}
			parts = append(parts, t.cut(i+len(sep), end))
			end = i
			most--
			x.item()
		}
		parts = append(parts, t.cut(0, end))
		for i, j := 0, len(parts)-1; i < j; i, j = i+1, j-1 {
			parts[i], parts[j] = parts[j], parts[i]
		}
		return parts
	}
	at := 0
	for most != 0 {
		i := strings.Index(t.s[at:], sep)
		if i < 0 {
			break
		}
		parts = append(parts, t.cut(at, at+i))
		at += i + len(sep)
		most--
		x.item()
	}
	return append(parts, t.cut(at, len(t.s)))
}

// words splits t at runs of white space, as split without a separator.
func (x *state) words(t text, most int64, right bool) []text {
	var parts []text
	if right {
		end := len(strings.TrimRightFunc(t.s, isSpace))
		for end > 0 {
			i := strings.LastIndexFunc(t.s[:end], isSpace)
			if most == 0 || i < 0 {
				parts = append(parts, t.cut(0, end))
				break
			}
			_, n := utf8.DecodeRuneInString(t.s[i:])
			parts = append(parts, t.cut(i+n, end))
			end = len(strings.TrimRightFunc(t.s[:i], isSpace))
			most--
			x.item()
		}
		for i, j := 0, len(parts)-1; i < j; i, j = i+1, j-1 {
			parts[i], parts[j] = parts[j], parts[i]
		}
		return parts
	}
	start := func(at int) int { return len(t.s) - len(strings.TrimLeftFunc(t.s[at:], isSpace)) }
	for at := start(0); at < len(t.s); most-- {
		i := strings.IndexFunc(t.s[at:], isSpace)
		if most == 0 || i < 0 {
			return append(parts, t.cut(at, len(t.s)))
		}
		parts = append(parts, t.cut(at, at+i))
		at = start(at + i)
		x.item()
	}
	return parts
}

// lines is splitlines.
func (x *state) lines(t text, keep bool) []text {
	var lines []text
	start := 0
	for i := 0; i < len(t.s); {
		r, n := utf8.DecodeRuneInString(t.s[i:])
		if !strings.ContainsRune("\n\r\v\f\x1c\x1d\x1e\u0085\u2028\u2029", r) {
			i += n
			continue
		}
		end := i
		i += n
		if r == '\r' && i < len(t.s) && t.s[i] == '\n' {
			i++
		}
		if keep {
			end = i
		}
		lines = append(lines, t.cut(start, end))
		start = i
		x.item()
	}
	if start < len(t.s) {
		lines = append(lines, t.cut(start, len(t.s)))
	}
	return lines
}

// replace puts to in place of from, at most most times if that is not negative.
func (x *state) replace(t text, from string, to text, most int64) text {
	b := builder{x: x}
	if from == "" {
		at := 0
		for most != 0 {
			b.add(to)
			most--
			if at == len(t.s) {
				return b.text()
			}
			_, n := utf8.DecodeRuneInString(t.s[at:])
			b.add(t.cut(at, at+n))
			at += n
			x.step(1)
		}
		b.add(t.cut(at, len(t.s)))
		return b.text()
	}
	at := 0
	for most != 0 {
		i := strings.Index(t.s[at:], from)
		if i < 0 {
			break
		}
		b.add(t.cut(at, at+i))
		b.add(to)
		at += i + len(from)
		most--
		x.step(1)
	}
	if at == 0 {
		return text{s: t.s, plain: t.plain} // as it was
	}
	b.add(t.cut(at, len(t.s)))
	return b.text()
}

// upper is Python's: full case mapping, which may give several characters for one.
func upper(s string) string {
	if isASCII(s) {
		return strings.ToUpper(s)
	}
	var b strings.Builder
	for _, r := range s {
		if many, ok := upperToMany[r]; ok {
			b.WriteString(many)
		} else {
			b.WriteRune(unicode.ToUpper(r))
		}
	}
	return b.String()
}

// lower is Python's, but for a sigma at the end of a word: see lowerText.
func lower(s string) string {
	low := strings.ToLower(s)
	if strings.ContainsRune(s, 'İ') {
		low = strings.ToLower(strings.ReplaceAll(s, "İ", "i\u0307"))
	}
	return low
}

// lowerText is str.lower.
func (x *state) lowerText(t text) text {
	if strings.ContainsRune(t.s, 'Σ') {
		final := []byte(t.s) // both small sigmas take two bytes, as the capital one
		x.charge(len(final))
		before := false // the last character that has or has not case was one that has
		for i, r := range t.s {
			if r == 'Σ' && before && !x.casedNext(t.s[i+len("Σ"):]) {
				copy(final[i:], "ς")
			}
			if !caseIgnorable(r) {
				before = isCased(r)
			}
		}
		t.s = string(final)
	}
	return x.convert(t, lower)
}

func (x *state) casedNext(s string) bool {
	for _, r := range s {
		x.step(1)
		if !caseIgnorable(r) {
			return isCased(r)
		}
	}
	return false
}

func caseIgnorable(r rune) bool {
	return strings.ContainsRune("'.:^`·’", r) || unicode.In(r, unicode.Mn, unicode.Me, unicode.Cf, unicode.Lm, unicode.Sk)
}

// isCased says whether a character has case.
func isCased(r rune) bool {
	return unicode.In(r, unicode.Lu, unicode.Ll, unicode.Lt, unicode.Other_Uppercase, unicode.Other_Lowercase)
}

func isUpper(r rune) bool { return unicode.In(r, unicode.Lu, unicode.Other_Uppercase) }
func isLower(r rune) bool { return unicode.In(r, unicode.Ll, unicode.Other_Lowercase) }

func titleRune(r rune) string {
	if r == 'ß' {
		return "Ss"
	}
	if many, ok := upperToMany[r]; ok && unicode.ToTitle(r) == r {
		first, n := utf8.DecodeRuneInString(many)
		return string(first) + strings.ToLower(many[n:])
	}
	return string(unicode.ToTitle(r))
}

// titleCase is str.title with upper at the start of words, str.capitalize with words false.
func (x *state) titleCase(t text, words bool) text {
	b := builder{x: x}
	inside := false // a word
	t.pieces(func(s string, plain bool) {
		for _, r := range s {
			if inside {
				b.write(lower(string(r)), plain)
			} else {
				b.write(titleRune(r), plain)
			}
			inside = !words || isCased(r)
		}
	})
	out := b.text()
	out.safe = t.safe
	return out
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}
