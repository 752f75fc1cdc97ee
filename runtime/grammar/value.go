package grammar

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// value is JSON whose objects keep the order of their keys, and whose numbers
// keep their text.
type value struct {
	kind byte // n t f 0 " [ {
	text string
	list []*value       // of an array, or an object's values
	keys []string       // of an object, each once
	at   map[string]int // key -> its place
}

const maxDepth = 400 // of a schema's JSON

func parseJSON(data []byte) (*value, error) {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	v, err := readValue(d, 0)
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = errors.New("it ends too early")
		}
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows after its end")
	}
	return v, nil
}

func readValue(d *json.Decoder, depth int) (*value, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("it is nested deeper than %d", maxDepth)
	}
	token, err := d.Token()
	if err != nil {
		return nil, err
	}
	switch t := token.(type) {
	case nil:
		return &value{kind: 'n'}, nil
	case bool:
		if t {
			return &value{kind: 't'}, nil
		}
		return &value{kind: 'f'}, nil
	case json.Number:
		return &value{kind: '0', text: t.String()}, nil
	case string:
		return &value{kind: '"', text: t}, nil
	}
	v := &value{kind: byte(token.(json.Delim))}
	if v.kind == '{' {
		v.at = map[string]int{}
	}
	for d.More() {
		if v.kind == '{' {
			key, err := d.Token()
			if err != nil {
				return nil, err
			}
			name := key.(string)
			x, err := readValue(d, depth+1)
			if err != nil {
				return nil, err
			}
			if i, again := v.at[name]; again {
				v.list[i] = x // the last one counts
				continue
			}
			v.at[name] = len(v.keys)
			v.keys, v.list = append(v.keys, name), append(v.list, x)
			continue
		}
		x, err := readValue(d, depth+1)
		if err != nil {
			return nil, err
		}
		v.list = append(v.list, x)
	}
	_, err = d.Token()
	return v, err
}

// get is the value of an object's key, or nil.
func (v *value) get(key string) *value {
	if i, ok := v.at[key]; ok {
		return v.list[i]
	}
	return nil
}

// canonical is the same for values that JSON Schema calls equal: 1.0 is 1, and
// the order of keys is nothing.
func (v *value) canonical() string {
	switch v.kind {
	case '0':
		if r, ok := rational(v.text); ok {
			return "0" + r.RatString()
		}
		return "0" + v.text
	case '"':
		return strconv.Quote(v.text)
	case '[', '{':
		parts := make([]string, len(v.list))
		for i, x := range v.list {
			parts[i] = x.canonical()
			if v.kind == '{' {
				parts[i] = strconv.Quote(v.keys[i]) + ":" + parts[i]
			}
		}
		if v.kind == '{' {
			slices.Sort(parts)
		}
		return string(v.kind) + strings.Join(parts, ",") + "}"
	}
	return string(v.kind)
}

// rational is the exact value of a number of a reasonable size.
func rational(text string) (*big.Rat, bool) {
	mantissa, exponent, _ := strings.Cut(strings.ToLower(text), "e")
	if len(mantissa) > 1000 || len(exponent) > 5 {
		return nil, false
	}
	var n int
	if exponent != "" {
		if _, err := fmt.Sscanf(exponent, "%d", &n); err != nil || n > 400 || n < -400 {
			return nil, false
		}
	}
	return new(big.Rat).SetString(text)
}

// blanks between a document's tokens: none, one space, or a new line and its
// indentation. They are bounded, so that a model cannot emit them for ever.
func (a *arena) blanks() id {
	return a.or([]id{empty, a.byte(' '), a.seq(a.byte('\n'), a.rep(a.bytes(normal([]span{{' ', ' '}, {'\t', '\t'}})), 0, 40))})
}

// number has at most 20 digits on each side of its point, and stays within a
// float64's range, since many readers fail beyond it.
const (
	numberPattern  = `-?(?:0|[1-9][0-9]{0,19})(?:\.[0-9]{1,20})?(?:[eE][+-]?[0-9]{1,2})?|-?[0-9](?:\.[0-9]{1,20})?[eE](?:[+]?(?:[12][0-9]{2}|30[0-7])|-(?:[12][0-9]{2}|30[0-7]))`
	integerPattern = `0|-?[1-9][0-9]{0,19}`
)

// regexNode is a node for a pattern of our own.
func (a *arena) regexNode(pattern string, how spelling) id {
	c := newArena()
	n, err := parseRegex(c, pattern, false, false)
	if err != nil {
		panic(err)
	}
	return a.spellAll(c, n, how)
}

// jsonString is a string with so many characters.
func (a *arena) jsonString(least, most int32) id {
	return a.seqs(a.byte('"'), a.rep(a.char, least, most), a.byte('"'))
}

// anyJSON is the rules for any value and any object.
type anyJSON struct{ value, object id }

func (a *arena) anyJSON() anyJSON {
	value, object := a.rule(), a.rule()
	refs := anyJSON{a.ref(value), a.ref(object)}
	a.repeats = true
	member := a.seqs(a.key(a.rep(a.char, 0, unlimited)), refs.value)
	a.rules[object].body = a.object(a.listed(member, 0, unlimited))
	array := a.array(a.listed(refs.value, 0, unlimited))
	a.rules[value].body = a.or([]id{
		refs.object, array, a.jsonString(0, unlimited), a.regexNode(numberPattern, raw), a.text("true"), a.text("false"), a.text("null"),
	})
	return refs
}

// key is one with these characters, and what stands before its value.
func (a *arena) key(inside id) id {
	return a.seqs(a.marked('"', beforeKey), inside, a.marked('"', afterKey), a.byte(':'), a.blanks())
}

// array and object are inside between their brackets, with blanks.
func (a *arena) array(inside id) id { return a.enclosed(a.byte('['), inside, a.byte(']')) }
func (a *arena) object(inside id) id {
	return a.enclosed(a.marked('{', opening), inside, a.marked('}', closing))
}

func (a *arena) enclosed(open, inside, end id) id {
	between := a.blanks()
	if inside == empty {
		return a.seqs(open, between, end)
	}
	// What follows the opening's blanks is one: an inside that may be empty
	// would let both blanks stand in a row.
	if m := a.nodes[inside]; m.kind == isOr && slices.Contains(a.lists[m.a:m.a+m.b], empty) {
		some := slices.DeleteFunc(slices.Clone(a.lists[m.a:m.a+m.b]), func(n id) bool { return n == empty })
		return a.seqs(open, between, a.or([]id{end, a.seqs(a.or(some), between, end)}))
	}
	return a.seqs(open, between, inside, between, end)
}

// listed is items with commas between them.
func (a *arena) listed(item id, least, most int32) id {
	if most == 0 {
		return empty
	}
	rest := most
	if rest != unlimited {
		rest--
	}
	some := a.seq(item, a.rep(a.seqs(a.byte(','), a.blanks(), item), max(least-1, 0), rest))
	if least == 0 {
		return a.optional(some)
	}
	return some
}

// literal is one value, with its keys in its order.
func (a *arena) literal(v *value) id {
	switch v.kind {
	case 'n':
		return a.text("null")
	case 't':
		return a.text("true")
	case 'f':
		return a.text("false")
	case '0':
		return a.text(v.text)
	case '"':
		return a.name(v.text)
	}
	parts := []id{}
	for i, x := range v.list {
		if i > 0 {
			parts = append(parts, a.byte(','), a.blanks())
		}
		if v.kind == '{' {
			parts = append(parts, a.key(a.spelled(v.keys[i])))
		}
		parts = append(parts, a.literal(x))
	}
	if v.kind == '{' {
		return a.object(a.seqs(parts...))
	}
	return a.array(a.seqs(parts...))
}

// spelled is one text within a string.
func (a *arena) spelled(text string) id {
	if len(text) > 256 {
		return a.trie([]string{text}, quoted)
	}
	inside := empty
	runes := []rune(text)
	for i := len(runes) - 1; i >= 0; i-- {
		inside = a.seq(a.spell(set{{runes[i], runes[i]}}, quoted), inside)
	}
	return inside
}

// name is one string, quoted.
func (a *arena) name(text string) id { return a.seqs(a.byte('"'), a.spelled(text), a.byte('"')) }

// JSONObject is any JSON object, with blanks of a bounded length, nesting of
// some hundred levels, and numbers of a bounded length.
func JSONObject() *Grammar { return jsonObject() }

var jsonObject = sync.OnceValue(func() *Grammar {
	a := newByteArena()
	g, err := seal(a, a.anyJSON().object)
	if err != nil {
		panic(err)
	}
	g.key = keyOf([]byte("json object"))
	return g
})
