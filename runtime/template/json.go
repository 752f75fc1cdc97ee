package template

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"strconv"
	"strings"
	"unicode/utf16"
)

// roles are those words that a message's role may be and yet count as the
// template's: some templates write "<|" + role + "|>".
var roles = map[string]bool{
	"system": true, "developer": true, "user": true, "assistant": true, "tool": true, "function": true,
	"observation": true, "ipython": true, "model": true, "tool_response": true, "tool_results": true,
}

// decode reads a JSON text as Python's json does. Its texts are marked as
// written by users, but for the roles of messages.
func (x *state) decode(what string, raw json.RawMessage) (value, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	v, err := x.decodeValue(dec, 0, what == "messages")
	if err == nil {
		if _, end := dec.Token(); end != io.EOF {
			err = fmt.Errorf("more than one value")
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return v, nil
}

func (x *state) decodeValue(dec *json.Decoder, depth int, messages bool) (value, error) {
	if depth > maxDepth/2 {
		return nil, fmt.Errorf("nested deeper than %d levels", maxDepth/2)
	}
	t, err := dec.Token()
	if err != nil {
		return nil, err
	}
	switch t := t.(type) {
	case string:
		return written(t), nil
	case json.Number:
		return number(string(t))
	case json.Delim:
		if t == '[' {
			l := &list{}
			for dec.More() {
				v, err := x.decodeValue(dec, depth+1, messages)
				if err != nil {
					return nil, err
				}
				l.items = append(l.items, v)
			}
			_, err := dec.Token()
			return l, err
		}
		d := &dict{}
		for dec.More() {
			key, err := dec.Token()
			if err != nil {
				return nil, err
			}
			v, err := x.decodeValue(dec, depth+1, messages)
			if err != nil {
				return nil, err
			}
			if role, ok := v.(text); ok && messages && depth == 1 && key == "role" && roles[role.s] {
				v = literal(role.s)
			}
			d.set(key, written(key.(string)), v)
		}
		_, err := dec.Token()
		return d, err
	}
	return t, nil // null or a bool
}

// number reads a JSON number: an integer unless it has a point or an exponent.
func number(s string) (value, error) {
	if strings.ContainsAny(s, ".eE") {
		f, _ := strconv.ParseFloat(s, 64) // what is out of range is infinite, as in Python
		return f, nil
	}
	if n, err := strconv.ParseInt(s, 10, 64); err == nil {
		return n, nil
	}
	if len(s) > maxDigits {
		return nil, fmt.Errorf("an integer of more than %d digits", maxDigits)
	}
	n, _ := new(big.Int).SetString(s, 10)
	return n, nil
}

// jsonStyle is how json.dumps writes.
type jsonStyle struct {
	ascii, sorted bool
	indent        *text // nil: on one line
	comma, colon  text
}

// tojson is json.dumps(v, ensure_ascii, indent, separators, sort_keys), as
// transformers has it as a filter: keys in order and characters as they are.
func tojson(x *state, v value, a args) value {
	o := a.bind(x, "tojson", 0, "ensure_ascii", "indent", "separators", "sort_keys")
	style := jsonStyle{comma: literal(", "), colon: literal(": ")}
	style.ascii = given(o[0]) && x.truth(o[0])
	style.sorted = given(o[3]) && x.truth(o[3])
	if given(o[1]) && o[1] != nil {
		t, ok := o[1].(text)
		if !ok {
			t = x.repeat(literal(" "), x.intArg("tojson", o[1]))
		}
		style.indent = &t
		style.comma = literal(",")
	}
	if given(o[2]) && o[2] != nil {
		parts := x.collect(o[2])
		if len(parts) != 2 {
			x.fail("separators must be two texts")
		}
		style.comma, style.colon = x.textArg("tojson", parts[0]), x.textArg("tojson", parts[1])
	}
	b := builder{x: x}
	x.writeJSON(&b, v, style, 0)
	return b.text()
}

func (x *state) writeJSON(b *builder, v value, style jsonStyle, level int) {
	x.step(1)
	container := func(open, end string, n int, item func(i int)) {
		defer x.enter(1)()
		b.literal(open)
		line := func(level int) {
			if style.indent != nil {
				x.step(level)
				b.literal("\n")
				for range level {
					b.add(*style.indent)
				}
			}
		}
		for i := range n {
			if i > 0 {
				b.add(style.comma)
			}
			line(level + 1)
			item(i)
		}
		if n > 0 {
			line(level)
		}
		b.literal(end)
	}
	switch v := v.(type) {
	case text:
		writeJSONText(b, v, style.ascii)
	case *list:
		container("[", "]", len(v.items), func(i int) { x.writeJSON(b, v.items[i], style, level+1) })
	case *dict:
		entries := v.entries
		if style.sorted {
			entries = x.sortedEntries(v)
		}
		container("{", "}", len(entries), func(i int) {
			switch key := entries[i].key.(type) {
			case text:
				writeJSONText(b, key, style.ascii)
			case nil, bool, int64, float64, *big.Int:
				b.literal(`"` + x.jsonNumber(key) + `"`)
			default:
				x.fail("keys must be str, int, float, bool or None, not %s", typeName(key))
			}
			b.add(style.colon)
			x.writeJSON(b, entries[i].value, style, level+1)
		})
	case nil, bool, int64, float64, *big.Int:
		b.literal(x.jsonNumber(v))
	default:
		x.fail("Object of type %s is not JSON serializable", typeName(v))
	}
}

func (x *state) sortedEntries(d *dict) []entry {
	keys := make([]value, len(d.entries))
	for i, e := range d.entries {
		keys[i] = e.key
	}
	keys = x.sort(keys, func(v value) value { return v }, false)
	out := make([]entry, len(keys))
	for i, key := range keys {
		at, _ := d.find(x.hash(key))
		out[i] = d.entries[at]
	}
	return out
}

func (x *state) jsonNumber(v value) string {
	switch s := x.number(v); s {
	case "None":
		return "null"
	case "True":
		return "true"
	case "False":
		return "false"
	case "inf":
		return "Infinity"
	case "-inf":
		return "-Infinity"
	case "nan":
		return "NaN"
	default:
		return s
	}
}

func writeJSONText(b *builder, t text, ascii bool) {
	b.literal(`"`)
	b.escapeEach(t, func(r rune) (string, bool) {
		switch r {
		case '"':
			return `\"`, true
		case '\\':
			return `\\`, true
		case '\n':
			return `\n`, true
		case '\r':
			return `\r`, true
		case '\t':
			return `\t`, true
		case '\b':
			return `\b`, true
		case '\f':
			return `\f`, true
		}
		switch {
		case r < ' ' || ascii && r > '~' && r <= 0xffff:
			return fmt.Sprintf(`\u%04x`, r), true
		case ascii && r > '~':
			high, low := utf16.EncodeRune(r)
			return fmt.Sprintf(`\u%04x\u%04x`, high, low), true
		}
		return "", false
	})
	b.literal(`"`)
}
