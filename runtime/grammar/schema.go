package grammar

import (
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strconv"
	"strings"
)

// JSONSchema is the JSON values that are valid under a schema: draft 2020-12
// and what drafts 6 to 2019-09 share with it. Whatever text of it ends is valid.
// An *Error names the keyword, with its path, that cannot be kept; annotations
// and unknown keywords are accepted, as the specification says.
//
// No object has a key twice. Some valid values are not generated. Keys come in
// the order of properties, then those that are only in required, of an enum of
// propertyNames, of patterns that few names match, then others. As in OpenAI's
// strict mode and vLLM, an object whose schema lists properties and says nothing
// of others has no others unless minProperties asks for more, and an array with
// prefixItems and without items likewise; write additionalProperties or items to
// have them. Blanks, digits and nesting are bounded; integers are written without
// a point; formats keep to what all readers take.
// oneOf is accepted where its branches provably exclude each other, perhaps by
// a property that then must be there, although they do not require it.
func JSONSchema(schema []byte) (*Grammar, error) {
	root, err := parseJSON(schema)
	if err != nil {
		return nil, &Error{"schema", err.Error()}
	}
	c := &compiler{
		a: newByteArena().bounded(), chars: newArena().bounded(), document: root,
		parsed: map[*value]*schemaPart{}, tags: map[string]*schemaPart{}, rules: map[string]id{}, patterns: map[string]id{}, wide: map[id]id{}, live: map[id]*arena{}, drafts: map[string]draft{}, contents: map[string]id{}, ranges: map[string]id{}, steps: maxSteps, paths: map[*value]string{},
	}
	n, err := c.compile(root)
	if err != nil {
		return nil, err
	}
	if c.a.spent || c.chars.spent {
		return nil, &Error{"schema", errComplex.Error()}
	}
	g, err := seal(c.a, n)
	if err != nil {
		return nil, &Error{"schema", err.Error()}
	}
	if err := c.emptied(); err != nil {
		return nil, err
	}
	if g.root == none {
		if c.lost != nil {
			return nil, c.lost
		}
		return nil, &Error{"schema", "no value is valid under it"}
	}
	g.key = keyOf([]byte("schema"), schema)
	return g, nil
}

func (c *compiler) compile(root *value) (n id, err error) {
	s, err := c.parse(root, "#")
	if err != nil {
		return none, err
	}
	return c.value([]*schemaPart{s})
}

// types of values, as bits. A number that is no integer has typeNumber alone.
type types uint8

const (
	typeNull types = 1 << iota
	typeBool
	typeNumber
	typeInteger
	typeString
	typeArray
	typeObject
	allTypes types = 1<<iota - 1
)

var typeNames = map[string]types{
	"null": typeNull, "boolean": typeBool, "number": typeNumber | typeInteger, "integer": typeInteger,
	"string": typeString, "array": typeArray, "object": typeObject,
}

// schemaPart is one schema object's own keywords; its references and branches
// are schemas of their own.
type schemaPart struct {
	number int // in the order of first use
	path   string
	never  bool // the schema false

	types   types
	values  []*value        // enum and const
	enum    map[string]bool // the same, canonical
	hasEnum bool

	all          []*value // allOf and $ref, with their paths
	allPaths     []string
	choices      []choice
	low, high    *big.Rat
	lowOpen      bool
	highOpen     bool
	multiple     *big.Rat
	minLength    int32
	maxLength    int32
	patterns     []id // of characters
	patternPaths []string

	properties    []string
	propertyOf    map[string]*value
	lists         bool // there are properties, perhaps none
	patternKeys   []string
	patternNodes  []id
	patternValues []*value
	additional    *value
	names         *value
	required      []string
	minProperties int32
	maxProperties int32
	prefix        []*value
	items         *value
	minItems      int32
	maxItems      int32
}

// choice is anyOf or oneOf.
type choice struct {
	path     string
	branches []*value
	one      bool
}

type compiler struct {
	a        *arena
	chars    *arena // of patterns
	document *value
	anchors  map[string]place // nil: not looked for yet
	parsed   map[*value]*schemaPart
	paths    map[*value]string
	tags     map[string]*schemaPart
	rules    map[string]id
	patterns map[string]id
	wide     map[id]id     // of a pattern: what any engine takes for it; of a format, anything
	perhaps  bool          // what may be valid to some engine is asked for, not what is to all
	live     map[id]*arena // of a pattern, to match texts
	any      anyJSON
	drafts   map[string]draft
	contents map[string]id // the same, quoted
	ranges   map[string]id
	work     int
	steps    int // of automata, left
	deep     int
	lost     *Error   // what may be valid and is not generated: why there may be nothing
	counted  []counts // where what may come was counted
}

// lose says of which keyword valid values are left out. If others are left, nobody needs to know.
func (c *compiler) lose(path, reason string) {
	if c.lost == nil {
		c.lost = &Error{"schema " + path, reason}
	}
}

// maxParts bounds the combinations of schemas, since allOf and anyOf multiply.
const maxParts = 200_000

func (c *compiler) spend(path string) error {
	if c.work++; c.work > maxParts || c.a.spent {
		return &Error{"schema " + path, "it has too many combinations of allOf, anyOf and references"}
	}
	return nil
}

// refused are keywords that change what is valid and that masks cannot keep.
var refused = []string{
	"not", "if", "dependentRequired", "dependentSchemas", "dependencies", "contains", "$dynamicRef", "$recursiveRef",
}

func escapePointer(s string) string {
	return strings.ReplaceAll(strings.ReplaceAll(s, "~", "~0"), "/", "~1")
}

// part is a schema that says nothing yet.
func (c *compiler) part(path string) *schemaPart {
	return &schemaPart{
		number: len(c.parsed) + len(c.tags), path: path, types: allTypes, propertyOf: map[string]*value{},
		maxLength: unlimited, maxProperties: unlimited, maxItems: unlimited,
	}
}

// parse reads a schema's own keywords, once.
func (c *compiler) parse(v *value, path string) (*schemaPart, error) {
	if s, ok := c.parsed[v]; ok {
		return s, nil
	}
	s := c.part(path)
	c.parsed[v] = s
	c.paths[v] = path
	switch v.kind {
	case 't':
		return s, nil
	case 'f':
		s.never = true
		return s, nil
	case '{':
	default:
		return nil, &Error{"schema " + path, "a schema is an object, true or false"}
	}
	for i, key := range v.keys {
		if err := c.keyword(s, v, key, v.list[i]); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (c *compiler) keyword(s *schemaPart, whole *value, key string, v *value) error {
	at := s.path + "/" + escapePointer(key)
	bad := func(format string, args ...any) error {
		return &Error{"schema " + at, fmt.Sprintf(format, args...)}
	}
	schemas := func() ([]*value, error) {
		if v.kind != '[' || len(v.list) == 0 {
			return nil, bad("it must be a list of schemas")
		}
		for i, x := range v.list {
			c.paths[x] = at + "/" + strconv.Itoa(i)
		}
		return v.list, nil
	}
	schema := func(x *value, path string) (*value, error) {
		if x.kind != '{' && x.kind != 't' && x.kind != 'f' {
			return nil, &Error{"schema " + path, "a schema is an object, true or false"}
		}
		if _, ok := c.paths[x]; !ok {
			c.paths[x] = path
		}
		return x, nil
	}
	count := func(to *int32) error {
		r, ok := (*big.Rat)(nil), false
		if v.kind == '0' {
			r, ok = rational(v.text)
		}
		if !ok || !r.IsInt() || r.Sign() < 0 {
			return bad("it must be a whole number that is not negative")
		}
		*to = unlimited
		if r.Num().IsInt64() && r.Num().Int64() < unlimited {
			*to = int32(r.Num().Int64())
		}
		return nil
	}
	number := func() (*big.Rat, error) {
		if v.kind != '0' {
			return nil, bad("it must be a number")
		}
		r, ok := rational(v.text)
		if !ok {
			return nil, bad("the number %.40s is too large or too long", v.text)
		}
		if _, ok := newDecimal(r); !ok {
			return nil, bad("the number is not a decimal")
		}
		return r, nil
	}
	texts := func() ([]string, error) {
		if v.kind != '[' {
			return nil, bad("it must be a list of strings")
		}
		var out []string
		for _, x := range v.list {
			if x.kind != '"' {
				return nil, bad("it must be a list of strings")
			}
			out = append(out, x.text)
		}
		return out, nil
	}
	var err error
	switch key {
	case "type":
		names := []*value{v}
		if v.kind == '[' {
			names = v.list
		}
		s.types = 0
		for _, x := range names {
			t, ok := typeNames[x.text]
			if x.kind != '"' || !ok {
				return bad("%q is not a type: write null, boolean, integer, number, string, array, object or a list of them", x.text)
			}
			s.types |= t
		}
		if s.types == 0 {
			return bad("it must name a type")
		}
	case "enum":
		if v.kind != '[' || len(v.list) == 0 {
			return bad("it must be a list of values")
		}
		s.narrow(v.list)
	case "const":
		s.narrow([]*value{v})
	case "$ref":
		if v.kind != '"' {
			return bad("it must be a string")
		}
		target, path, err := c.resolve(v.text)
		if err != nil {
			return bad("%v", err)
		}
		s.all, s.allPaths = append(s.all, target), append(s.allPaths, path)
	case "allOf":
		list, err := schemas()
		if err != nil {
			return err
		}
		for _, x := range list {
			s.all, s.allPaths = append(s.all, x), append(s.allPaths, c.paths[x])
		}
	case "anyOf", "oneOf":
		list, err := schemas()
		if err != nil {
			return err
		}
		s.choices = append(s.choices, choice{at, list, key == "oneOf"})
	case "minimum", "exclusiveMinimum":
		r, err := number()
		if err != nil {
			return err
		}
		if open := key != "minimum"; s.low == nil || r.Cmp(s.low) > 0 || r.Cmp(s.low) == 0 && open {
			s.low, s.lowOpen = r, open
		}
	case "maximum", "exclusiveMaximum":
		r, err := number()
		if err != nil {
			return err
		}
		if open := key != "maximum"; s.high == nil || r.Cmp(s.high) < 0 || r.Cmp(s.high) == 0 && open {
			s.high, s.highOpen = r, open
		}
	case "multipleOf":
		if s.multiple, err = number(); err != nil {
			return err
		}
		if s.multiple.Sign() <= 0 {
			return bad("it must be larger than 0")
		}
	case "minLength":
		return count(&s.minLength)
	case "maxLength":
		return count(&s.maxLength)
	case "minItems":
		return count(&s.minItems)
	case "maxItems":
		return count(&s.maxItems)
	case "minProperties":
		return count(&s.minProperties)
	case "maxProperties":
		return count(&s.maxProperties)
	case "pattern":
		if v.kind != '"' {
			return bad("it must be a string")
		}
		n, err := c.pattern(v.text, true)
		if err != nil {
			return bad("%v", err)
		}
		s.patterns, s.patternPaths = append(s.patterns, n), append(s.patternPaths, at)
	case "format":
		if v.kind != '"' {
			return bad("it must be a string")
		}
		if v.text == "regex" {
			return bad("the format regex is not supported: leave it out, or write a pattern")
		}
		if text, ok := formats[v.text]; ok { // an unknown one is an annotation
			n, err := c.pattern(text, false)
			if err != nil {
				return bad("%v", err)
			}
			s.patterns, s.patternPaths = append(s.patterns, n), append(s.patternPaths, at)
		}
	case "properties":
		if v.kind != '{' {
			return bad("it must be an object of schemas")
		}
		for i, name := range v.keys {
			x, err := schema(v.list[i], at+"/"+escapePointer(name))
			if err != nil {
				return err
			}
			s.properties = append(s.properties, name)
			s.propertyOf[name] = x
		}
		s.lists = true
	case "patternProperties":
		if v.kind != '{' {
			return bad("it must be an object of schemas")
		}
		for i, name := range v.keys {
			x, err := schema(v.list[i], at+"/"+escapePointer(name))
			if err != nil {
				return err
			}
			n, err := c.pattern(name, true)
			if err != nil {
				return bad("%v", err)
			}
			s.patternKeys, s.patternNodes, s.patternValues = append(s.patternKeys, name), append(s.patternNodes, n), append(s.patternValues, x)
		}
	case "additionalProperties":
		s.additional, err = schema(v, at)
	case "propertyNames":
		s.names, err = schema(v, at)
	case "required":
		s.required, err = texts()
	case "prefixItems":
		if s.prefix, err = schemas(); err != nil {
			return err
		}
	case "items":
		if v.kind == '[' { // until draft 2019-09
			if len(v.list) > 0 {
				s.prefix, err = schemas()
			}
			return err
		}
		s.items, err = schema(v, at)
	case "additionalItems":
		if old := whole.get("items"); old != nil && old.kind == '[' {
			s.items, err = schema(v, at)
		}
	case "uniqueItems":
		if max := whole.get("maxItems"); v.kind == 't' && (max == nil || max.text != "0" && max.text != "1") {
			return bad("it is not supported: items that differ cannot be forced by masking")
		}
	case "$id":
		if s.path != "#" {
			return bad("it is supported only at the root")
		}
	case "unevaluatedProperties", "unevaluatedItems":
		// Without other schemas for the same value it says what additionalProperties and items do.
		beside := slices.ContainsFunc([]string{"$ref", "allOf", "anyOf", "oneOf"}, func(k string) bool { return whole.get(k) != nil })
		switch {
		case v.kind == 't':
		case beside:
			return bad("it is not supported beside $ref, allOf, anyOf and oneOf: write additionalProperties or items")
		case key == "unevaluatedProperties" && whole.get("additionalProperties") == nil:
			s.additional, err = schema(v, at)
		case key == "unevaluatedItems" && whole.get("items") == nil:
			s.items, err = schema(v, at)
		}
	default:
		if slices.Contains(refused, key) {
			return bad("it is not supported")
		}
	}
	return err
}

// narrow is enum, or const beside it.
func (s *schemaPart) narrow(values []*value) {
	in := map[string]bool{}
	values = slices.DeleteFunc(slices.Clone(values), func(v *value) bool {
		key := v.canonical()
		again := in[key] || s.hasEnum && !s.enum[key]
		in[key] = true
		return again
	})
	s.values, s.hasEnum, s.enum = values, true, map[string]bool{}
	for _, v := range values {
		s.enum[v.canonical()] = true
	}
}

// pattern is a node of characters, remembered.
func (c *compiler) pattern(text string, search bool) (id, error) {
	key := strconv.FormatBool(search) + text
	if n, ok := c.patterns[key]; ok {
		return n, nil
	}
	n, err := parseRegex(c.chars, text, search, false)
	if err != nil {
		return none, err
	}
	c.patterns[key] = n
	wide := c.chars.rep(c.chars.bytes(everything), 0, unlimited)
	if search {
		if wide, err = parseRegex(c.chars, text, search, true); err != nil {
			return none, err
		}
	}
	c.wide[n] = c.chars.or([]id{c.wide[n], wide})
	return n, nil
}

// resolve finds what a reference within the document means.
func (c *compiler) resolve(ref string) (*value, string, error) {
	if id := c.document.get("$id"); id != nil && id.text != "" {
		ref = strings.TrimPrefix(ref, strings.TrimSuffix(id.text, "#"))
	}
	pointer, ok := strings.CutPrefix(ref, "#")
	if !ok {
		return nil, "", fmt.Errorf("the reference %q leaves the schema: only #/… is supported", ref)
	}
	pointer = unescapePercent(pointer)
	v := c.document
	if pointer == "" {
		return v, "#", nil
	}
	if pointer[0] != '/' {
		if c.anchors == nil {
			c.anchors = map[string]place{}
			c.findAnchors(c.document, "#")
		}
		if p, ok := c.anchors[pointer]; ok {
			return p.value, p.path, nil
		}
		return nil, "", fmt.Errorf("the anchor %q is nowhere", ref)
	}
	for _, step := range strings.Split(pointer[1:], "/") {
		step = strings.ReplaceAll(strings.ReplaceAll(step, "~1", "/"), "~0", "~")
		var next *value
		if v.kind == '[' {
			if i, err := strconv.Atoi(step); err == nil && 0 <= i && i < len(v.list) {
				next = v.list[i]
			}
		} else {
			next = v.get(step)
		}
		if next == nil {
			return nil, "", fmt.Errorf("the reference %q leads nowhere", ref)
		}
		v = next
	}
	return v, "#" + pointer, nil
}

// unescapePercent reads %XX, as in a URI's fragment.
func unescapePercent(s string) string {
	var out []byte
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			if b, err := strconv.ParseUint(s[i+1:i+3], 16, 8); err == nil {
				out = append(out, byte(b))
				i += 2
				continue
			}
		}
		out = append(out, s[i])
	}
	return string(out)
}

// place is a schema within the document.
type place struct {
	value *value
	path  string
}

// findAnchors gathers those of a value and what is in it; the first of a name counts.
func (c *compiler) findAnchors(v *value, path string) {
	if a := v.get("$anchor"); a != nil && a.kind == '"' {
		if _, twice := c.anchors[a.text]; !twice {
			c.anchors[a.text] = place{v, path}
		}
	}
	for i, x := range v.list {
		step := strconv.Itoa(i)
		if v.kind == '{' {
			step = escapePointer(v.keys[i])
			if step == "enum" || step == "const" {
				continue
			}
		}
		c.findAnchors(x, path+"/"+step)
	}
}

// parts of schemas that are all to hold, with what they refer to.
type parts struct {
	seen    []*schemaPart
	list    []*schemaPart // those with keywords of their own
	choices []choice      // not decided yet
}

func (p parts) has(s *schemaPart) bool { return slices.Contains(p.seen, s) }

// with adds a schema, and what it refers to.
func (c *compiler) with(p parts, s *schemaPart) (parts, error) {
	if p.has(s) {
		return p, nil
	}
	if err := c.spend(s.path); err != nil {
		return p, err
	}
	c.work += len(p.seen) / 100 // which are copied
	p.seen = append(slices.Clip(p.seen), s)
	if !s.trivial() {
		p.list = append(slices.Clip(p.list), s)
	}
	p.choices = append(slices.Clip(p.choices), s.choices...)
	for i, v := range s.all {
		x, err := c.parse(v, s.allPaths[i])
		if err != nil {
			return p, err
		}
		if p, err = c.with(p, x); err != nil {
			return p, err
		}
	}
	return p, nil
}

func (c *compiler) gather(list []*schemaPart) (parts, error) {
	var p parts
	var err error
	for _, s := range list {
		if p, err = c.with(p, s); err != nil {
			return p, err
		}
	}
	return p, nil
}

// at is the schema of a value within the document.
func (c *compiler) at(v *value) (*schemaPart, error) { return c.parse(v, c.paths[v]) }

// value is a node for the values that are valid under all of the schemas; a
// rule, so that schemas may be recursive.
func (c *compiler) value(list []*schemaPart) (id, error) {
	p, err := c.gather(list)
	if err != nil {
		return none, err
	}
	if len(p.list) == 0 {
		return c.anything().value, nil
	}
	numbers := make([]int, len(p.list))
	for i, s := range p.list {
		numbers[i] = s.number
	}
	slices.Sort(numbers)
	key := fmt.Sprint(numbers)
	if n, ok := c.rules[key]; ok {
		return n, nil
	}
	if c.deep++; c.deep > 2*maxDepth {
		return none, &Error{"schema " + p.list[0].path, "schemas are nested too deeply"}
	}
	defer func() { c.deep-- }()
	rule := c.a.rule()
	c.rules[key] = c.a.ref(rule)
	body, err := c.decide(p)
	if err != nil {
		return none, err
	}
	c.a.rules[rule].body = body
	if body == none {
		c.rules[key] = none
	}
	return c.rules[key], nil
}

func (s *schemaPart) trivial() bool {
	return !s.never && s.types == allTypes && !s.hasEnum && len(s.choices) == 0 && s.low == nil && s.high == nil && s.multiple == nil &&
		s.minLength == 0 && s.maxLength == unlimited && len(s.patterns) == 0 && !s.lists && len(s.patternKeys) == 0 &&
		s.additional == nil && s.names == nil && len(s.required) == 0 && s.minProperties == 0 && s.maxProperties == unlimited &&
		len(s.prefix) == 0 && s.items == nil && s.minItems == 0 && s.maxItems == unlimited
}

func (c *compiler) anything() anyJSON {
	if c.any.value == none {
		c.any = c.a.anyJSON()
	}
	return c.any
}

// decide tries the branches of the first choice.
func (c *compiler) decide(p parts) (id, error) {
	if len(p.choices) == 0 {
		if len(p.list) == 0 {
			return c.anything().value, nil
		}
		return c.leaf(p.list)
	}
	first := p.choices[0]
	p.choices = p.choices[1:]
	branches := make([]*schemaPart, len(first.branches))
	for i, v := range first.branches {
		s, err := c.at(v)
		if err != nil {
			return none, err
		}
		branches[i] = s
	}
	if first.one {
		tag, err := c.exclusive(p.list, branches, first.path)
		if err != nil {
			return none, err
		}
		if tag != nil {
			if p, err = c.with(p, tag); err != nil {
				return none, err
			}
			c.lose(first.path, "it is supported only with the property "+strconv.Quote(tag.required[0])+", which tells its branches apart")
		}
	}
	var options []id
	for _, s := range branches {
		q, err := c.with(p, s)
		if err != nil {
			return none, err
		}
		n, err := c.decide(q)
		if err != nil {
			return none, err
		}
		options = append(options, n)
	}
	return c.a.or(options), nil
}

// leaf is the values that are valid under the keywords of all of the list.
func (c *compiler) leaf(list []*schemaPart) (id, error) {
	if err := c.spend(list[0].path); err != nil {
		return none, err
	}
	allowed := allTypes
	for _, s := range list {
		if s.never {
			return none, nil
		}
		allowed &= s.types
	}
	for _, s := range list {
		if s.hasEnum {
			return c.enumerated(s.values, list)
		}
	}
	var options []id
	if allowed&typeNull != 0 {
		options = append(options, c.a.text("null"))
	}
	if allowed&typeBool != 0 {
		options = append(options, c.a.text("true"), c.a.text("false"))
	}
	for _, t := range []struct {
		of   types
		make func([]*schemaPart) (id, error)
	}{
		{typeNumber | typeInteger, func(list []*schemaPart) (id, error) { return c.numbers(list, allowed&typeNumber == 0) }},
		{typeString, c.strings}, {typeArray, c.arrays}, {typeObject, c.objects},
	} {
		if allowed&t.of == 0 {
			continue
		}
		n, err := t.make(list)
		if err != nil {
			return none, err
		}
		options = append(options, n)
	}
	return c.a.or(options), nil
}

// underAll says whether the keywords of all of the list hold.
func (c *compiler) underAll(list []*schemaPart, v *value) (bool, error) {
	for _, s := range list {
		if ok, err := c.own(s, v, 0); err != nil || !ok {
			return false, err
		}
	}
	return true, nil
}

func (c *compiler) enumerated(values []*value, list []*schemaPart) (id, error) {
	var options []id
	var names []string
	for _, v := range values {
		ok, err := c.underAll(list, v)
		if err != nil {
			return none, err
		}
		switch {
		case !ok:
			before := c.perhaps
			c.perhaps = true
			ok, err := c.underAll(list, v)
			if c.perhaps = before; err != nil {
				return none, err
			}
			if ok {
				c.lose(list[0].path, "of its enum nothing is left that is valid to all readers: they differ on its pattern or format")
			}
		case v.kind == '"':
			names = append(names, v.text)
		default:
			options = append(options, c.a.literal(v))
		}
	}
	if c.a.spent {
		return none, &Error{"schema " + list[0].path, "its enum is too large"}
	}
	if len(names) == 1 {
		options = append(options, c.a.name(names[0]))
	} else if len(names) > 0 {
		options = append(options, c.a.seqs(c.a.byte('"'), c.a.trie(names, quoted), c.a.byte('"')))
	}
	return c.a.or(options), nil
}

func limitsOf(list []*schemaPart) limits {
	var l limits
	for _, s := range list {
		if s.low != nil && (l.low == nil || s.low.Cmp(l.low) > 0 || s.low.Cmp(l.low) == 0 && s.lowOpen) {
			l.low, l.lowOpen = s.low, s.lowOpen
		}
		if s.high != nil && (l.high == nil || s.high.Cmp(l.high) < 0 || s.high.Cmp(l.high) == 0 && s.highOpen) {
			l.high, l.highOpen = s.high, s.highOpen
		}
		if s.multiple != nil {
			if l.multiple == nil {
				l.multiple = s.multiple
			} else {
				l.multiple = common(l.multiple, s.multiple)
			}
		}
	}
	return l
}

func (c *compiler) numbers(list []*schemaPart, integer bool) (id, error) {
	l := limitsOf(list)
	l.integer = integer
	key := fmt.Sprint(l.low, l.lowOpen, l.high, l.highOpen, l.multiple, integer)
	n, ok := c.ranges[key]
	if ok {
		return n, nil
	}
	n, states, ok := c.a.number(l)
	if ok && n == none && l.some() {
		c.lose(list[0].path, "its minimum and maximum are not supported together: what is between them has too many digits")
	}
	c.ranges[key] = n
	c.steps -= 30 * states
	if !ok || c.steps < 0 {
		path, reason := list[0].path, "its limits need too many states"
		for _, s := range list {
			if s.multiple != nil {
				path, reason = s.path+"/multipleOf", "it is too large, or has too many digits: up to 10000 and 12 digits after the point are supported"
			}
		}
		return none, &Error{"schema " + path, reason}
	}
	return n, nil
}

// lengthsOf is the fewest and the most characters.
func lengthsOf(list []*schemaPart) (least, most int32) {
	most = unlimited
	for _, s := range list {
		least, most = max(least, s.minLength), min(most, s.maxLength)
	}
	return least, most
}

const (
	maxStates = 30_000
	maxSteps  = 2_000_000 // of a schema's automata together, some hundred nanoseconds each
)

func (c *compiler) strings(list []*schemaPart) (id, error) {
	n, err := c.content(list, nil, nil)
	if err != nil || n == none {
		return none, err
	}
	return c.a.seqs(c.a.byte('"'), n, c.a.byte('"')), nil
}

// content is the characters of a string between its quotes: valid under the
// list, and under what all further patterns say, and none of the others.
func (c *compiler) content(list []*schemaPart, also, others []id) (id, error) {
	least, most := lengthsOf(list)
	if least > most {
		return none, nil
	}
	var patterns []id
	path := ""
	for _, s := range list {
		patterns = append(patterns, s.patterns...)
		if len(s.patternPaths) > 0 {
			path = s.patternPaths[0]
		}
	}
	if path == "" && len(list) > 0 {
		path = list[0].path
	}
	patterns = append(patterns, also...)
	loose := slices.ContainsFunc(patterns, func(p id) bool { return c.wide[p] != p })
	lose := func(n id) id {
		if n == none && loose {
			c.lose(path, "it is not supported with its length and other patterns: no text is left on which all readers agree")
		}
		return n
	}
	slices.Sort(patterns)
	patterns = slices.Compact(patterns)
	if len(patterns) == 0 && len(others) == 0 {
		return c.a.rep(c.a.char, least, most), nil
	}
	if len(patterns) == 1 && len(others) == 0 {
		n := patterns[0]
		l, u := c.chars.lengths(n, map[id][2]int64{})
		if m := c.chars.nodes[n]; m.kind == isRep && c.chars.nodes[m.a].kind == isSet {
			n = c.chars.rep(m.a, max(m.b, least), min(m.c, most)) // none if they exclude each other
			least, most = 0, unlimited
		}
		if l >= int64(least) && u <= int64(most) {
			return lose(c.a.spellAll(c.chars, n, quoted)), nil
		}
	}
	key := fmt.Sprint(least, most, patterns, others)
	if n, ok := c.contents[key]; ok {
		return n, nil
	}
	d, err := c.draft(path, least, most, patterns, others)
	if err != nil {
		return none, err
	}
	c.contents[key] = lose(c.a.automaton(d, quoted))
	return c.contents[key], nil
}

// draft is an automaton of texts with so many characters, of all patterns and none of the others.
func (c *compiler) draft(path string, least, most int32, patterns, others []id) (draft, error) {
	key := fmt.Sprint(least, most, patterns, others)
	if d, ok := c.drafts[key]; ok {
		return d, nil
	}
	any := c.chars.bytes(everything)
	a := c.chars.clone()
	n := a.rep(any, least, most)
	for _, p := range patterns {
		n = a.and(n, p)
	}
	for _, p := range others {
		n = a.and(n, a.not(p))
	}
	d, err := determinize(a, n, maxStates, c.steps)
	c.steps -= len(c.chars.nodes) + a.work
	if err != nil || c.steps < 0 {
		return draft{}, &Error{"schema " + path, "with its length and other patterns it" + errComplex.Error()[len("it is too complex: it"):]}
	}
	c.drafts[key] = d
	return d, nil
}

// child is the schemas that all must hold for what is at a place of a value.
type child []*schemaPart

func (c *compiler) schemas(values []*value) (child, error) {
	var out child
	for _, v := range values {
		s, err := c.at(v)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out, nil
}

// valueOf is value for none or more schemas.
func (c *compiler) valueOf(values []*value) (id, error) {
	list, err := c.schemas(values)
	if err != nil {
		return none, err
	}
	if len(list) == 0 {
		return c.anything().value, nil
	}
	return c.value(list)
}

func (c *compiler) arrays(list []*schemaPart) (id, error) {
	least, most, fixed := int32(0), int32(unlimited), 0
	open := true
	for _, s := range list {
		least, most = max(least, s.minItems), min(most, s.maxItems)
		fixed = max(fixed, len(s.prefix))
		open = open && (len(s.prefix) == 0 || s.items != nil)
	}
	if least > most {
		return none, nil
	}
	at := func(i int) (id, error) {
		var here []*value
		for _, s := range list {
			if i < len(s.prefix) {
				here = append(here, s.prefix[i])
			} else if s.items != nil {
				here = append(here, s.items)
			}
		}
		return c.valueOf(here)
	}
	rest := id(none)
	if open || least > int32(fixed) { // more items than listed are asked for: then they are allowed
		n, err := at(fixed)
		if err != nil {
			return none, err
		}
		rest = n
	}
	// From the last place to the first: what may follow after i items.
	a := c.a
	separator := a.seq(a.byte(','), a.blanks())
	after := empty
	if rest != none && most > int32(fixed) {
		more, limit := max(least-int32(fixed), 0), int32(unlimited)
		if most != unlimited {
			limit = most - int32(fixed)
		}
		if fixed == 0 {
			after = a.listed(rest, more, limit)
		} else {
			after = a.rep(a.seq(separator, rest), more, limit)
		}
	} else if least > int32(fixed) {
		return none, nil
	}
	for i := fixed - 1; i >= 0; i-- {
		if int32(i) >= most {
			after = empty
			continue
		}
		item, err := at(i)
		if err != nil {
			return none, err
		}
		if i > 0 {
			item = a.seq(separator, item)
		}
		after = a.seq(item, after)
		if int32(i) >= least {
			after = a.optional(after)
		}
	}
	if after == none {
		return none, nil
	}
	return a.array(after), nil
}

// property is the schemas that hold for a key's value, and false if the key is not allowed.
func (c *compiler) property(list []*schemaPart, name string) (here []*value, allowed bool, err error) {
	for _, s := range list {
		if err := c.spend(s.path); err != nil {
			return nil, false, err
		}
		known := false
		if v, ok := s.propertyOf[name]; ok {
			here, known = append(here, v), true
		}
		for i, p := range s.patternNodes {
			in, err := c.matches(p, name)
			if err != nil {
				return nil, false, err
			}
			perhaps, err := c.matches(c.wide[p], name)
			if err != nil {
				return nil, false, err
			}
			if c.perhaps {
				in, perhaps = perhaps, in
			}
			if perhaps { // then all that may be asked for is
				here = append(here, s.patternValues[i])
			}
			known = known || in
		}
		if !known && s.additional != nil {
			here = append(here, s.additional)
		}
		if s.names != nil {
			n, err := c.at(s.names)
			if err != nil {
				return nil, false, err
			}
			if ok, err := c.valid(n, &value{kind: '"', text: name}, 0); err != nil || !ok {
				return nil, false, err
			}
		}
	}
	return here, true, nil
}

func (c *compiler) objects(list []*schemaPart) (id, error) {
	a := c.a
	least, most := int32(0), int32(unlimited)
	var names []string
	known, required := map[string]bool{}, map[string]bool{}
	add := func(name string) {
		if !known[name] {
			known[name] = true
			names = append(names, name)
		}
	}
	closed := false // by listing some and saying nothing of others
	for _, s := range list {
		least, most = max(least, s.minProperties), min(most, s.maxProperties)
		for _, name := range s.properties {
			add(name)
		}
		closed = closed || s.lists && s.additional == nil && len(s.patternKeys) == 0
		for _, name := range s.required {
			required[name] = true
		}
	}
	for _, s := range list {
		closed = closed && s.additional == nil && len(s.patternKeys) == 0
		for _, name := range s.required {
			add(name)
		}
	}
	type member struct {
		node     id
		required bool
	}
	var members []member
	enter := func(names []string) error {
		for _, name := range names {
			here, allowed, err := c.property(list, name)
			if err != nil {
				return err
			}
			n := none
			if allowed {
				if n, err = c.valueOf(here); err != nil {
					return err
				}
			}
			if n != none {
				n = a.seqs(a.key(a.spelled(name)), n)
			}
			if n != none || required[name] {
				members = append(members, member{n, required[name]})
			}
		}
		return nil
	}
	if err := enter(names); err != nil {
		return none, err
	}
	if closed && least > 0 {
		c.lose(list[0].path+"/minProperties", "it is not supported with the listed properties alone: set additionalProperties")
	}
	var pools []pool
	if !closed || least > int32(len(members)) { // more are asked for than are listed: then they are allowed
		listed := len(names)
		if err := c.listedNames(list, add); err != nil {
			return none, err
		}
		if err := enter(names[listed:]); err != nil {
			return none, err
		}
		all, err := c.others(list, names)
		if err != nil {
			return none, err
		}
		for _, p := range all {
			if p.count > maxListed {
				pools = append(pools, p)
				continue
			}
			for _, name := range p.names { // so few that they are like properties
				members = append(members, member{a.seqs(a.key(a.spelled(name)), p.value), false})
			}
		}
	}
	// follow is what may come from member i on, when count came already.
	counting := least > 0 || most != unlimited
	if counting && len(members) > 200 {
		return none, &Error{"schema " + list[0].path, "minProperties and maxProperties are supported with at most 200 properties"}
	}
	separator := a.seq(a.byte(','), a.blanks())
	tail := func(count int32) id {
		more, limit := max(least-count, 0), int32(unlimited)
		if most != unlimited {
			limit = most - count
		}
		// There are no more keys than that; and each pool has enough of them alone, so
		// that whichever keys were chosen, enough are left.
		var options []id
		total := int64(0)
		var from []pool
		for _, p := range pools {
			if p.count < int64(more) {
				c.lose(list[0].path+"/minProperties", "it is not supported beside patterns that so few names have")
				continue
			}
			options, from = append(options, p.member), append(from, p)
			total = min(total+p.count, unlimited)
		}
		limit = min(limit, int32(total))
		if limit < more {
			return none
		}
		if limit == 0 {
			return empty
		}
		if len(from) > 1 {
			c.counted = append(c.counted, counts{list[0].path, limit, from})
		}
		other := a.or(options)
		if count == 0 {
			return a.listed(other, more, limit)
		}
		return a.rep(a.seq(separator, other), more, limit)
	}
	// One row of what follows for each count, from the last member to the first.
	counts := 2
	if counting {
		counts = len(members) + 1
	}
	row := make([]id, counts)
	for n := range row {
		row[n] = tail(int32(n))
	}
	for i := len(members) - 1; i >= 0; i-- {
		m := members[i]
		next := make([]id, counts)
		for n := range next {
			if n > i {
				if n > 1 || i == 0 {
					continue // so many cannot have come
				}
			}
			to := n + 1
			if !counting {
				to = 1
			}
			if to >= counts {
				continue
			}
			take := a.seq(m.node, row[to])
			if n > 0 {
				take = a.seq(separator, take)
			}
			if m.required {
				next[n] = take
			} else {
				next[n] = a.or([]id{take, row[n]})
			}
			if len(members) > 3 && i > 0 && next[n] != none { // a rule, so that options do not add up, nor count as depth
				rule := a.rule()
				a.rules[rule].body = next[n]
				next[n] = a.ref(rule)
			}
		}
		row = next
	}
	if row[0] == none {
		return none, nil
	}
	return a.object(row[0]), nil
}

// maxListed names of a pattern are treated like properties.
const maxListed = 32

// pool is members whose keys are none of the names of others.
type pool struct {
	count  int64    // of keys; unlimited or more: enough
	names  []string // the keys, if there are few
	value  id
	member id
}

// counts is that up to so many members come from pools.
type counts struct {
	path  string
	most  int32
	pools []pool
}

// emptied says that keys were counted under whose schemas there turned out to be no value.
func (c *compiler) emptied() error {
	if !slices.ContainsFunc(c.counted, func(n counts) bool {
		return slices.ContainsFunc(n.pools, func(p pool) bool { return p.count < int64(n.most) })
	}) {
		return nil
	}
	all := make([]bool, len(c.a.nodes))
	for i := range all {
		all[i] = true
	}
	height := c.a.heights(all)
	for _, n := range c.counted {
		left := int64(0)
		for _, p := range n.pools {
			if height[p.value] != never {
				left += p.count
			}
		}
		if 0 < left && left < int64(n.most) {
			return &Error{"schema " + n.path, "properties of a schema under which no value is valid are not supported beside patterns that few names have"}
		}
	}
	return nil
}

// listedNames adds those that propertyNames enumerates.
func (c *compiler) listedNames(list []*schemaPart, add func(string)) error {
	rules, err := c.nameRules(list)
	for _, s := range rules {
		for _, v := range s.values {
			if v.kind == '"' {
				add(v.text)
			}
		}
	}
	return err
}

// nameRules are the schemas of properties' names.
func (c *compiler) nameRules(list []*schemaPart) ([]*schemaPart, error) {
	var rules []*schemaPart
	for _, s := range list {
		if s.names != nil {
			n, err := c.at(s.names)
			if err != nil {
				return nil, err
			}
			rules = append(rules, n)
		}
	}
	p, err := c.gather(rules)
	return p.list, err
}

// others are the members whose keys are none of the names.
func (c *compiler) others(list []*schemaPart, names []string) ([]pool, error) {
	a := c.a
	type pattern struct {
		node  id
		value []*value // by part
	}
	var patterns []pattern
	for _, s := range list {
		for i, p := range s.patternNodes {
			at := slices.IndexFunc(patterns, func(q pattern) bool { return q.node == p })
			if at < 0 {
				at = len(patterns)
				patterns = append(patterns, pattern{p, nil})
			}
			patterns[at].value = append(patterns[at].value, s.patternValues[i])
		}
	}
	if len(patterns) > 6 {
		return nil, &Error{"schema " + list[0].path + "/patternProperties", "at most 6 patterns are supported"}
	}
	rules, err := c.nameRules(list)
	if err != nil {
		return nil, err
	}
	for _, s := range rules {
		if s.never || s.hasEnum || s.types&typeString == 0 { // an enum's are among the names
			return nil, nil
		}
		if len(s.choices) > 0 {
			return nil, &Error{"schema " + s.path, "names of properties are supported with enum, const, pattern, format, minLength and maxLength"}
		}
	}
	var pools []pool
	for in := range 1 << len(patterns) {
		var also, not []id
		var here []*value
		for i, p := range patterns {
			if in>>i&1 == 1 {
				also = append(also, p.node)
				here = append(here, p.value...)
			} else {
				not = append(not, c.wide[p.node])
			}
		}
		for _, s := range list {
			matched := false
			for i, p := range patterns {
				matched = matched || in>>i&1 == 1 && slices.Contains(s.patternNodes, p.node)
			}
			if !matched && s.additional != nil {
				here = append(here, s.additional)
			}
		}
		p := pool{}
		if p.value, err = c.valueOf(here); err != nil {
			return nil, err
		}
		if p.value == none {
			continue
		}
		key, err := c.keysOf(list[0].path, rules, names, also, not, &p)
		if err != nil {
			return nil, err
		}
		if p.count > 0 {
			a.repeats = a.repeats || p.count > maxListed
			p.member = a.seqs(a.key(key), p.value)
			pools = append(pools, p)
		}
	}
	return pools, nil
}

// keysOf is the keys of a pool, none of them among the names, and how many they are.
func (c *compiler) keysOf(path string, rules []*schemaPart, names []string, also, not []id, p *pool) (key id, err error) {
	p.count = unlimited
	patterns := len(also) + len(not)
	if len(also)+len(not)+len(rules) == 0 {
		if len(names) == 0 {
			return c.a.rep(c.a.char, 0, unlimited), nil
		}
		return c.a.automaton(without(names), quoted), nil
	}
	for _, name := range names {
		not = append(not, c.word(name))
	}
	if key, err = c.content(rules, also, not); err != nil || key == none {
		p.count = 0
		return none, err
	}
	// Are there few?
	least, most := lengthsOf(rules)
	before := len(also)
	for _, s := range rules {
		also = append(also, s.patterns...)
	}
	if patterns = patterns + len(also) - before; patterns == 0 || patterns == 1 && len(also) == 1 {
		longest := int64(most)
		for _, n := range also {
			_, u := c.chars.lengths(n, map[id][2]int64{})
			longest = min(longest, u)
		}
		if longest == unlimited { // less some names
			return key, nil
		}
	}
	slices.Sort(also)
	d, err := c.draft(path, least, most, slices.Compact(also), not)
	if err != nil {
		return none, err
	}
	p.count = d.count()
	if p.count <= maxListed {
		p.names = d.texts()
	}
	return key, nil
}

// word is one text, in characters.
func (c *compiler) word(text string) id {
	n := empty
	runes := []rune(text)
	for i := len(runes) - 1; i >= 0; i-- {
		n = c.chars.seq(c.chars.bytes(set{{runes[i], runes[i]}}), n)
	}
	return n
}

// matches says whether a node of characters takes a text.
func (c *compiler) matches(n id, text string) (bool, error) {
	a, ok := c.live[n]
	if !ok {
		a = c.chars.clone()
		var sets []set
		for _, i := range a.reachableSets(n) {
			sets = append(sets, a.sets[i])
		}
		a.symbols = newPartition(append(sets, everything))
		a.live, a.sealed = true, true
		c.live[n] = a
	}
	a.work, a.limit = 0, maxSteps
	for _, r := range text {
		n = a.derive(n, a.symbols.of(r))
	}
	if a.spent {
		return false, errComplex
	}
	return a.nodes[n].null, nil
}

// clone shares only the sets.
func (a *arena) clone() *arena {
	out := &arena{sets: a.sets, setIDs: a.setIDs, nodes: slices.Clone(a.nodes), lists: slices.Clone(a.lists), own: maps.Clone(a.own), limit: a.limit}
	return out
}
