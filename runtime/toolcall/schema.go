package toolcall

import (
	"encoding/json"
	"math"
	"strconv"
	"strings"
)

// kinds are the JSON types that a schema allows, a bit each.
type kinds uint8

const (
	kindString kinds = 1 << iota
	kindNumber
	kindInteger
	kindBoolean
	kindNull
	kindObject
	kindArray
	kindAny kinds = 1<<iota - 1
)

var kindNames = map[string]kinds{
	"string": kindString, "number": kindNumber | kindInteger, "integer": kindInteger, "boolean": kindBoolean,
	"null": kindNull, "object": kindObject, "array": kindArray,
}

// schema is as much of one as tells types apart.
type schema struct {
	Type       json.RawMessage   `json:"type"`
	Ref        string            `json:"$ref"`
	Enum       []json.RawMessage `json:"enum"`
	Const      json.RawMessage   `json:"const"`
	AnyOf      []json.RawMessage `json:"anyOf"`
	OneOf      []json.RawMessage `json:"oneOf"`
	AllOf      []json.RawMessage `json:"allOf"`
	Nullable   bool              `json:"nullable"`
	Properties json.RawMessage   `json:"properties"`
	Required   json.RawMessage   `json:"required"`
	Pattern    string            `json:"pattern"`
	MinLength  float64           `json:"minLength"`
	MaxLength  *float64          `json:"maxLength"`
}

// resolver follows references within a schema. What leads round in circles, or
// multiplies, ends at its bounds: a schema that is not understood allows every type.
type resolver struct {
	root  json.RawMessage
	known map[string]map[string]json.RawMessage // path -> members
	left  int                                   // schemas that may yet be looked at
	bytes int                                   // that may yet be read
}

const (
	maxSchemas = 4096
	maxReads   = 64 // of each byte of the whole, more or less
	maxHops    = 16 // from reference to reference
	maxPath    = 8  // keys of a reference
)

func newResolver(root json.RawMessage) *resolver {
	return &resolver{root: root, known: map[string]map[string]json.RawMessage{}, left: maxSchemas, bytes: maxReads * (len(root) + 64)}
}

// property is one of the arguments of a tool, in the order of its schema.
type property struct {
	name     string
	schema   json.RawMessage
	kinds    kinds
	required bool
}

// properties are the arguments that a schema of an object names. A schema that cannot be
// read names none.
func properties(parameters json.RawMessage) []property {
	r := newResolver(parameters)
	s, ok := r.resolve(parameters)
	if !ok {
		return nil
	}
	var required []string
	if json.Unmarshal(s.Required, &required) != nil {
		required = nil
	}
	needed, listed := map[string]bool{}, map[string]bool{}
	for _, name := range required {
		needed[name] = true
	}
	var list []property
	for _, m := range members(s.Properties) {
		listed[m.name] = true
		list = append(list, property{m.name, m.value, r.kinds(m.value), needed[m.name]})
	}
	for _, name := range required {
		if !listed[name] {
			listed[name] = true
			list = append(list, property{name, json.RawMessage("{}"), kindAny, true})
		}
	}
	return list
}

type member struct {
	name  string
	value json.RawMessage
}

// members are an object's, in the order in which they are written.
func members(object json.RawMessage) []member {
	var list []member
	d := json.NewDecoder(strings.NewReader(string(object)))
	if open, err := d.Token(); err != nil || open != json.Delim('{') {
		return nil
	}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return nil
		}
		var value json.RawMessage
		if d.Decode(&value) != nil {
			return nil
		}
		list = append(list, member{name.(string), value})
	}
	return list
}

// resolve reads a schema, and where it refers to another part of the whole, that one.
func (r *resolver) resolve(raw json.RawMessage) (s schema, ok bool) {
	for range maxHops {
		if r.left == 0 || r.bytes < len(raw) {
			return s, false
		}
		r.left, r.bytes = r.left-1, r.bytes-len(raw)
		s = schema{}
		if json.Unmarshal(raw, &s) != nil {
			return s, false
		}
		if s.Ref == "" {
			return s, true
		}
		if raw = r.at(s.Ref); raw == nil {
			return s, false
		}
	}
	return s, false
}

// at is the part that a reference names, such as #/$defs/point.
func (r *resolver) at(ref string) json.RawMessage {
	keys := strings.Split(ref, "/")
	if keys[0] != "#" || len(keys) > maxPath {
		return nil
	}
	raw, path := r.root, ""
	for _, key := range keys[1:] {
		m, ok := r.known[path]
		if !ok {
			if json.Unmarshal(raw, &m) != nil {
				m = nil
			}
			r.known[path] = m
		}
		raw, path = m[strings.NewReplacer("~1", "/", "~0", "~").Replace(key)], path+"/"+key
	}
	return raw
}

// kinds are the types that a schema allows.
func (r *resolver) kinds(raw json.RawMessage) kinds {
	s, ok := r.resolve(raw)
	if !ok {
		return kindAny
	}
	allowed := s.types()
	if s.Const != nil {
		s.Enum = append(s.Enum, s.Const)
	}
	if len(s.Enum) > 0 {
		var k kinds
		for _, v := range s.Enum {
			k |= kindOf(string(v))
		}
		allowed &= k
	}
	for _, list := range [][]json.RawMessage{s.AnyOf, s.OneOf} {
		if len(list) > 0 {
			var k kinds
			for _, sub := range list {
				k |= r.kinds(sub)
			}
			allowed &= k
		}
	}
	for _, sub := range s.AllOf {
		allowed &= r.kinds(sub)
	}
	if allowed == 0 { // contradicts itself
		return kindAny
	}
	return allowed
}

// types are those of the keyword type; all without it.
func (s *schema) types() kinds {
	var one string
	var several []string
	switch {
	case json.Unmarshal(s.Type, &one) == nil && one != "":
		several = []string{one}
	case json.Unmarshal(s.Type, &several) != nil || len(several) == 0:
		return kindAny
	}
	var allowed kinds
	for _, name := range several {
		k, known := kindNames[name]
		if !known {
			k = kindAny
		}
		allowed |= k
	}
	if s.Nullable {
		allowed |= kindNull
	}
	return allowed
}

// bare says that a value is a string, or perhaps null: it is written without quotes.
func (k kinds) bare() bool { return k&^kindNull == kindString }

// kindOf is the type of valid JSON.
func kindOf(v string) kinds {
	switch v = strings.TrimSpace(v); {
	case v == "":
		return 0
	case v[0] == '"':
		return kindString
	case v[0] == '{':
		return kindObject
	case v[0] == '[':
		return kindArray
	case v[0] == 't' || v[0] == 'f':
		return kindBoolean
	case v[0] == 'n':
		return kindNull
	}
	if x, err := strconv.ParseFloat(v, 64); err == nil && x == math.Trunc(x) {
		return kindNumber | kindInteger
	}
	return kindNumber
}

// argument is a value that was written as bare text, as JSON: a string where the schema wants
// one, otherwise the JSON that it is, or the constant that Python writes. Text that is none
// of that is a string, whatever the schema says.
func argument(text string, allowed kinds) string {
	if allowed == kindString {
		return quote(text)
	}
	v := strings.TrimSpace(text)
	if word, ok := constants[v]; ok && kindOf(word)&allowed != 0 {
		v = word
	}
	switch {
	case v == "null" && allowed&kindNull != 0:
		return v
	case allowed.bare(), !json.Valid([]byte(v)), kindOf(v)&allowed == 0 && allowed&kindString != 0:
		return quote(text)
	}
	return v
}

// constants are Python's spellings of JSON's.
var constants = map[string]string{"True": "true", "False": "false", "None": "null"}
