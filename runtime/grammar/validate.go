package grammar

import (
	"math/big"
	"slices"
	"strconv"
	"unicode/utf8"
)

// valid says whether a value is valid under a schema: for enum, const and the
// names of properties.
func (c *compiler) valid(s *schemaPart, v *value, depth int) (bool, error) {
	if depth > maxDepth {
		return false, &Error{"schema " + s.path, "it is nested too deeply"}
	}
	if err := c.spend(s.path); err != nil {
		return false, err
	}
	if ok, err := c.own(s, v, depth); err != nil || !ok {
		return false, err
	}
	for i, x := range s.all {
		t, err := c.parse(x, s.allPaths[i])
		if err != nil {
			return false, err
		}
		if ok, err := c.valid(t, v, depth+1); err != nil || !ok {
			return false, err
		}
	}
	for _, choice := range s.choices {
		n, err := c.branches(choice, v, depth)
		if err != nil || n == 0 {
			return false, err
		}
		if choice.one && !c.perhaps {
			c.perhaps = true
			n, err = c.branches(choice, v, depth)
			if c.perhaps = false; err != nil || n > 1 {
				return false, err
			}
		}
	}
	return true, nil
}

// branches is how many of a choice a value is valid under.
func (c *compiler) branches(choice choice, v *value, depth int) (n int, err error) {
	for _, x := range choice.branches {
		t, err := c.at(x)
		if err != nil {
			return 0, err
		}
		ok, err := c.valid(t, v, depth+1)
		if err != nil {
			return 0, err
		}
		if ok {
			n++
		}
	}
	return n, nil
}

// own says the same of a schema's own keywords, but for references and choices.
func (c *compiler) own(s *schemaPart, v *value, depth int) (bool, error) {
	if s.never || s.types&typeOf(v) == 0 || s.hasEnum && !s.enum[v.canonical()] {
		return false, nil
	}
	switch v.kind {
	case '0':
		return s.ownNumber(v), nil
	case '"':
		if n := utf8.RuneCountInString(v.text); int64(n) < int64(s.minLength) || int64(n) > int64(s.maxLength) {
			return false, nil
		}
		for _, p := range s.patterns {
			if c.perhaps {
				p = c.wide[p]
			}
			if ok, err := c.matches(p, v.text); err != nil || !ok {
				return false, err
			}
		}
	case '[':
		if int64(len(v.list)) < int64(s.minItems) || int64(len(v.list)) > int64(s.maxItems) {
			return false, nil
		}
		for i, x := range v.list {
			under := s.items
			if i < len(s.prefix) {
				under = s.prefix[i]
			}
			if ok, err := c.validUnder(under, x, depth); err != nil || !ok {
				return false, err
			}
		}
	case '{':
		if int64(len(v.list)) < int64(s.minProperties) || int64(len(v.list)) > int64(s.maxProperties) {
			return false, nil
		}
		for _, name := range s.required {
			if v.get(name) == nil {
				return false, nil
			}
		}
		for i, name := range v.keys {
			here, allowed, err := c.property([]*schemaPart{s}, name)
			if err != nil || !allowed {
				return false, err
			}
			for _, under := range here {
				if ok, err := c.validUnder(under, v.list[i], depth); err != nil || !ok {
					return false, err
				}
			}
		}
	}
	return true, nil
}

func (c *compiler) validUnder(schema, v *value, depth int) (bool, error) {
	if schema == nil {
		return true, nil
	}
	s, err := c.at(schema)
	if err != nil {
		return false, err
	}
	return c.valid(s, v, depth+1)
}

func typeOf(v *value) types {
	switch v.kind {
	case 'n':
		return typeNull
	case 't', 'f':
		return typeBool
	case '"':
		return typeString
	case '[':
		return typeArray
	case '{':
		return typeObject
	}
	if r, ok := rational(v.text); ok && r.IsInt() {
		return typeInteger
	}
	return typeNumber
}

func (s *schemaPart) ownNumber(v *value) bool {
	if s.low == nil && s.high == nil && s.multiple == nil {
		return true
	}
	r, ok := rational(v.text)
	if !ok {
		return false
	}
	if s.low != nil && (r.Cmp(s.low) < 0 || r.Cmp(s.low) == 0 && s.lowOpen) {
		return false
	}
	if s.high != nil && (r.Cmp(s.high) > 0 || r.Cmp(s.high) == 0 && s.highOpen) {
		return false
	}
	return s.multiple == nil || new(big.Rat).Quo(r, s.multiple).IsInt()
}

// exclusive says, as an error, that two branches of a oneOf may both be valid
// beside what else must hold. A tag is what else must hold for them to exclude each
// other: that a property is there, whose values tell them apart.
func (c *compiler) exclusive(beside []*schemaPart, branches []*schemaPart, path string) (tag *schemaPart, err error) {
	c.perhaps = true
	defer func() { c.perhaps = false }()
	x, y, err := c.overlap(beside, branches)
	if err != nil || x < 0 {
		return nil, err
	}
	first, err := c.gather(branches[:1])
	if err != nil {
		return nil, err
	}
	for _, s := range first.list {
		for _, name := range s.properties[:min(len(s.properties), 50)] {
			tag := c.tags[name]
			if tag == nil {
				tag = c.part(path)
				tag.required = []string{name}
				c.tags[name] = tag
			}
			if i, _, err := c.overlap(append(slices.Clip(beside), tag), branches); err != nil {
				return nil, err
			} else if i < 0 {
				return tag, nil
			}
		}
	}
	return nil, &Error{"schema " + path, "branches " + strconv.Itoa(x) + " and " + strconv.Itoa(y) + " may both be valid, which masks cannot exclude: use anyOf, or give each a property with a const that tells it apart"}
}

// overlap finds two branches that may both be valid; -1 if there are none.
func (c *compiler) overlap(beside []*schemaPart, branches []*schemaPart) (i, j int, err error) {
	for j, x := range branches {
		for i := range j {
			apart, err := c.apart(append(slices.Clip(beside), branches[i]), append(slices.Clip(beside), x), 0)
			if err != nil {
				return -1, -1, err
			}
			if !apart {
				return i, j, nil
			}
		}
	}
	return -1, -1, nil
}

// apart says that no value is valid under all of x and all of y, if that is plain to see.
func (c *compiler) apart(x, y []*schemaPart, depth int) (bool, error) {
	if depth > 8 {
		return false, nil
	}
	p, err := c.gather(x)
	if err != nil {
		return false, err
	}
	q, err := c.gather(y)
	if err != nil {
		return false, err
	}
	if ok, err := c.apartLeaf(p.list, q.list, depth); ok || err != nil {
		return ok, err
	}
	// Each branch of a choice apart from the other side.
	for side, these := range []parts{p, q} {
		for _, choice := range these.choices {
			all := true
			for _, v := range choice.branches {
				s, err := c.at(v)
				if err != nil {
					return false, err
				}
				if these.has(s) {
					all = false
					break
				}
				other := q.list
				if side == 1 {
					other = p.list
				}
				ok, err := c.apart(append(slices.Clip(these.list), s), other, depth+1)
				if err != nil {
					return false, err
				}
				if !ok {
					all = false
					break
				}
			}
			if all {
				return true, nil
			}
		}
	}
	return false, nil
}

func (c *compiler) apartLeaf(x, y []*schemaPart, depth int) (bool, error) {
	both := slices.Concat(x, y)
	if len(both) == 0 {
		return false, nil
	}
	if err := c.spend(both[0].path); err != nil {
		return false, err
	}
	common := allTypes
	for _, s := range both {
		if s.never {
			return true, nil
		}
		common &= s.types
	}
	if common == 0 {
		return true, nil
	}
	for _, s := range both {
		if !s.hasEnum {
			continue
		}
		for _, v := range s.values {
			valid := true
			for _, t := range both { // its own keywords: the choice that is being judged is among them
				ok, err := c.own(t, v, 0)
				if err != nil {
					return false, err
				}
				valid = valid && ok
			}
			if valid {
				return false, nil
			}
		}
		return true, nil
	}
	if common&(typeNull|typeBool) != 0 {
		return false, nil
	}
	if common&(typeNumber|typeInteger) != 0 {
		l := limitsOf(both)
		if l.low == nil || l.high == nil || l.low.Cmp(l.high) < 0 || l.low.Cmp(l.high) == 0 && !l.lowOpen && !l.highOpen {
			return false, nil
		}
	}
	if common&typeString != 0 {
		if least, most := lengthsOf(both); least <= most {
			return false, nil
		}
	}
	if common&typeArray != 0 {
		least, most := int32(0), int32(unlimited)
		for _, s := range both {
			least, most = max(least, s.minItems), min(most, s.maxItems)
		}
		if least <= most {
			return false, nil
		}
	}
	if common&typeObject == 0 {
		return true, nil
	}
	for _, s := range both {
		for _, name := range s.required {
			one, allowed, err := c.property(x, name)
			if err != nil {
				return false, err
			}
			two, allowed2, err := c.property(y, name)
			if err != nil {
				return false, err
			}
			if !allowed || !allowed2 {
				return true, nil
			}
			ones, err := c.schemas(one)
			if err != nil {
				return false, err
			}
			twos, err := c.schemas(two)
			if err != nil {
				return false, err
			}
			if slices.ContainsFunc(slices.Concat(ones, twos), func(s *schemaPart) bool { return s.never }) {
				return true, nil
			}
			if len(ones) == 0 || len(twos) == 0 {
				continue
			}
			if ok, err := c.apart(ones, twos, depth+1); ok || err != nil {
				return ok, err
			}
		}
	}
	return false, nil
}
