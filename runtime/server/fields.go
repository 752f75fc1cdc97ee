package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// maxDepth bounds how deep objects and lists of a request may be nested; a JSON
// schema needs three levels for one of its own.
const maxDepth = 128

// member is a key of an object with its value.
type member struct {
	key   string
	value json.RawMessage
}

// object is a JSON object with its members in the order in which they were written,
// which the templates of chats keep.
type object []member

// parseObject reads a text that is one object of members with different names.
func parseObject(text []byte) (object, error) {
	o, twice, err := parseMembers(text)
	if err == nil && twice != "" {
		err = fmt.Errorf("the key %.100q is there twice", twice)
	}
	return o, err
}

// parseMembers reads a text that is one object. Of equal keys, of which twice is one,
// the last counts, where the first stands.
func parseMembers(text []byte) (o object, twice string, err error) {
	if deep(text) {
		return nil, "", fmt.Errorf("it is nested deeper than %d levels", maxDepth)
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	if start, err := dec.Token(); err != nil {
		return nil, "", unexpected(err)
	} else if start != json.Delim('{') {
		return nil, "", errors.New("it is not an object")
	}
	o, seen := object{}, map[string]int{}
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return nil, "", unexpected(err)
		}
		m := member{key: key.(string)} // or Token would have failed
		if err := dec.Decode(&m.value); err != nil {
			return nil, "", unexpected(err)
		}
		if i, ok := seen[m.key]; ok {
			twice, o[i].value = m.key, m.value
			continue
		}
		seen[m.key] = len(o)
		o = append(o, m)
	}
	if _, err := dec.Token(); err != nil {
		return nil, "", unexpected(err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, "", errors.New("something follows the object")
	}
	return o, twice, nil
}

// misspelled says what of a text is no JSON that can be passed on as it is meant: no characters,
// half of a surrogate pair, or raw control characters in strings, which encoding/json takes or explains badly.
func misspelled(text []byte) error {
	if !utf8.Valid(text) {
		return errors.New("is not UTF-8")
	}
	for i := 0; i < len(text); i++ {
		if text[i] != '"' {
			continue
		}
		for i++; i < len(text) && text[i] != '"'; i++ {
			switch {
			case text[i] < ' ':
				return fmt.Errorf("has a raw control character in a string, at byte %d: write it as \\u%04x", i, text[i])
			case text[i] != '\\':
			case isHalf(text[i:], 0xd800) && isHalf(text[min(i+6, len(text)):], 0xdc00):
				i += 11
			case isHalf(text[i:], 0xd800) || isHalf(text[i:], 0xdc00):
				return fmt.Errorf("has half of a surrogate pair, at byte %d: %.6s", i, text[i:])
			default:
				i++
			}
		}
	}
	return nil
}

// isHalf says that a text begins with one of the 1024 surrogates from first on, as an escape.
func isHalf(text []byte, first uint64) bool {
	if len(text) < 6 || text[0] != '\\' || text[1] != 'u' {
		return false
	}
	x, err := strconv.ParseUint(string(text[2:6]), 16, 16)
	return err == nil && first <= x && x < first+0x400
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// deep says whether brackets are nested too deep for those who read JSON by recursion.
func deep(text []byte) bool {
	depth := 0
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '{', '[':
			if depth++; depth > maxDepth {
				return true
			}
		case '}', ']':
			depth--
		case '"':
			for i++; i < len(text) && text[i] != '"'; i++ {
				if text[i] == '\\' {
					i++
				}
			}
		}
	}
	return false
}

// value is nil if there is none.
func (o object) value(key string) json.RawMessage {
	for _, m := range o {
		if m.key == key {
			return m.value
		}
	}
	return nil
}

// set replaces a value where it stands, or adds it at the end.
func (o object) set(key string, value json.RawMessage) object {
	for i := range o {
		if o[i].key == key {
			o[i].value = value
			return o
		}
	}
	return append(o, member{key, value})
}

// without is an object that lacks some keys.
func (o object) without(keys ...string) object {
	return slices.DeleteFunc(slices.Clone(o), func(m member) bool { return slices.Contains(keys, m.key) })
}

func (o object) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, m := range o {
		if i > 0 {
			b.WriteByte(',')
		}
		b.Write(quoted(m.key))
		b.WriteByte(':')
		b.Write(m.value)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// quoted is a text as JSON.
func quoted(s string) json.RawMessage {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err) // strings always can be encoded
	}
	return b
}

// fields are the members of a request, or of an object within one, each taken
// once; the first that is wrong is the error.
type fields struct {
	of   endpoint // whose parameters they are; 0: an object's within a request
	at   string   // where that object stands: "messages[2]."
	left map[string]json.RawMessage
	err  *apiError
}

func parseFields(of endpoint, body []byte) *fields {
	f := &fields{of: of}
	if err := misspelled(body); err != nil {
		f.fail("", "The body %s", err)
	} else if deep(body) {
		f.fail("", "The body is nested deeper than %d levels", maxDepth)
	}
	o, err := parseObject(body)
	if err != nil {
		f.fail("", "The body must be a JSON object with different keys: %s", err)
	}
	f.fill(o)
	return f
}

func (f *fields) fill(o object) {
	f.left = make(map[string]json.RawMessage, len(o))
	for _, m := range o {
		f.left[m.key] = m.value
	}
}

// within are the members of an object that is a part of these fields' request;
// what is wrong there is their error.
func (f *fields) within(name string, raw json.RawMessage) (*fields, object) {
	part := &fields{at: f.at + name + "."}
	o, err := parseObject(raw)
	if err != nil {
		f.fail(name, "%s must be an object: %s", name, err)
	}
	part.fill(o)
	return part, o
}

// join takes over what is wrong in a part.
func (f *fields) join(part *fields) {
	if f.err == nil {
		f.err = part.err
	}
}

// fail says what is wrong with a member: the sentence begins with its name, as clients spell it.
func (f *fields) fail(name, format string, args ...any) {
	at := f.at
	if name == "" && at != "" { // of the object itself
		at = strings.TrimSuffix(at, ".") + " "
	}
	if f.err == nil {
		f.err = invalid(strings.TrimSuffix(f.at+name, "."), at+format+".", args...)
	}
}

// take is a member's value; false if it is absent or null.
func (f *fields) take(name string) (json.RawMessage, bool) {
	if f.of != 0 && !f.of.reads(name) {
		panic("server: parameter " + name + " is not in the table")
	}
	raw, ok := f.left[name]
	delete(f.left, name)
	return raw, ok && string(raw) != "null"
}

// finish refuses what nobody has taken, unless it changes no answer.
func (f *fields) finish() *apiError {
	for _, name := range slices.Sorted(maps.Keys(f.left)) {
		if why := f.of.refuses(name, f.left[name]); why != "" {
			f.fail(name, "%s", why)
		}
	}
	return f.err
}

// rest refuses what nobody has taken of a part.
func (f *fields) rest() {
	for _, name := range slices.Sorted(maps.Keys(f.left)) {
		if _, ok := f.take(name); ok {
			f.fail(name, "%.100s is not known here; leave it out", name)
		}
	}
}

func (f *fields) text(name string) (s string) {
	if raw, ok := f.take(name); ok && json.Unmarshal(raw, &s) != nil {
		f.fail(name, "%s must be a string", name)
	}
	return s
}

func (f *fields) boolean(name string, absent bool) bool {
	raw, ok := f.take(name)
	if !ok {
		return absent
	}
	var b bool
	if json.Unmarshal(raw, &b) != nil {
		f.fail(name, "%s must be true or false", name)
	}
	return b
}

func (f *fields) number(name string, least, most, absent float64) float64 {
	raw, ok := f.take(name)
	if !ok {
		return absent
	}
	var x float64
	if json.Unmarshal(raw, &x) != nil || x < least || x > most {
		f.fail(name, "%s must be a number from %v to %v", name, least, most)
		return absent
	}
	return x
}

func (f *fields) integer(name string, least, most, absent int) int {
	raw, ok := f.take(name)
	if !ok {
		return absent
	}
	var x int
	if json.Unmarshal(raw, &x) != nil || x < least || x > most {
		f.fail(name, "%s must be a whole number from %d to %d", name, least, most)
		return absent
	}
	return x
}

// ids are a list of token ids; the model says later which of them it knows.
func (f *fields) ids(name string) []int32 {
	raw, ok := f.take(name)
	if !ok {
		return nil
	}
	ids, ok := parseIDs(raw)
	if !ok {
		f.fail(name, "%s must be a list of token ids", name)
	}
	return ids
}

func parseIDs(raw json.RawMessage) ([]int32, bool) {
	var list []*int32
	if json.Unmarshal(raw, &list) != nil || list == nil {
		return nil, false
	}
	ids := make([]int32, len(list))
	for i, id := range list {
		if id == nil {
			return nil, false
		}
		ids[i] = *id
	}
	return ids, true
}

// prompts are a string, a list of ids, or a list of either.
func (f *fields) prompts(name string, most int) []prompt {
	raw, ok := f.take(name)
	if !ok {
		f.fail(name, "%s is required: a string, a list of token ids, or a list of either", name)
		return nil
	}
	if p, ok := onePrompt(raw); ok {
		return []prompt{p}
	}
	var list []json.RawMessage
	if json.Unmarshal(raw, &list) != nil || len(list) == 0 || len(list) > most {
		f.fail(name, "%s must be a string, a list of token ids, or a list of 1 to %d of those", name, most)
		return nil
	}
	prompts := make([]prompt, len(list))
	for i, raw := range list {
		if prompts[i], ok = onePrompt(raw); !ok {
			f.fail(name, "%s[%d] must be a string or a list of token ids", name, i)
			return nil
		}
	}
	return prompts
}

// prompt is text, or ids if those are not nil.
type prompt struct {
	text string
	ids  []int32
}

func onePrompt(raw json.RawMessage) (p prompt, ok bool) {
	if json.Unmarshal(raw, &p.text) == nil && string(raw) != "null" {
		return p, true
	}
	ids, ok := parseIDs(raw)
	return prompt{ids: ids}, ok && len(ids) > 0
}

// bias maps token ids to what is added to their logits.
func (f *fields) bias() map[int32]float64 {
	raw, ok := f.take("logit_bias")
	if !ok {
		return nil
	}
	var values map[string]float64
	bias := map[int32]float64{}
	err := json.Unmarshal(raw, &values)
	for key, x := range values {
		id, wrong := strconv.ParseInt(key, 10, 32)
		if wrong != nil || id < 0 || x < -100 || x > 100 {
			err = strconv.ErrRange
		}
		bias[int32(id)] = x
	}
	if err != nil {
		f.fail("logit_bias", "logit_bias must map token ids to numbers from -100 to 100")
	}
	return bias
}

func (f *fields) stops() []string {
	raw, ok := f.take("stop")
	if !ok {
		return nil
	}
	var one string
	var stops []string
	if json.Unmarshal(raw, &one) == nil {
		stops = []string{one}
	} else if json.Unmarshal(raw, &stops) != nil {
		f.fail("stop", "stop must be a string or a list of strings")
	}
	if len(stops) > maxStops || slices.Contains(stops, "") {
		f.fail("stop", "stop must have at most %d strings, none of them empty", maxStops)
	}
	return stops
}
