package standalone

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// wrong finds the first field of a JSON object that a Go value like v does not take,
// and says what to write instead. nil: it takes all of them.
func wrong(text []byte, v any) error { return wrongAt("", text, reflect.TypeOf(v)) }

// notThis are types that say how their values are written.
var notThis = map[reflect.Type]string{
	reflect.TypeFor[metav1.Duration]():   "write a duration, as in 5m",
	reflect.TypeFor[resource.Quantity](): "write a size, as in 14Gi",
	reflect.TypeFor[metav1.Time]():       "write a time, as in 2026-01-31T12:00:00Z",
}

func wrongAt(path string, text json.RawMessage, t reflect.Type) error {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	err := json.Unmarshal(text, reflect.New(t).Interface())
	_, reads := reflect.New(t).Interface().(json.Unmarshaler)
	switch {
	case reads && err == nil, string(text) == "null":
		return nil
	case reads:
		return fmt.Errorf("field %s is %s: %s", path, brief(text), cmp.Or(notThis[t], plain(err).Error()))
	case t.Kind() == reflect.Struct && text[0] == '{':
		return wrongFields(path, text, t)
	case t.Kind() == reflect.Map && text[0] == '{', t.Kind() == reflect.Slice && text[0] == '[':
		return wrongParts(path, text, t)
	case err != nil:
		return fmt.Errorf("field %s is %s: %s", path, brief(text), instead(err, t))
	}
	return nil
}

// wrongFields looks at the fields of an object in the order of their names.
func wrongFields(path string, text []byte, t reflect.Type) error {
	var all map[string]json.RawMessage
	if err := json.Unmarshal(text, &all); err != nil {
		return err
	}
	fields := map[string]reflect.Type{}
	fieldsOf(t, fields)
	for _, name := range sorted(all) {
		is, known := fields[name]
		if !known {
			return unknownField(path, name, fields)
		}
		if err := wrongAt(join(path, name), all[name], is); err != nil {
			return err
		}
	}
	return nil
}

// wrongParts looks at the parts of a list or a map.
func wrongParts(path string, text []byte, t reflect.Type) error {
	if t.Kind() == reflect.Slice {
		var all []json.RawMessage
		if err := json.Unmarshal(text, &all); err != nil {
			return err
		}
		for i, part := range all {
			if err := wrongAt(fmt.Sprintf("%s[%d]", path, i), part, t.Elem()); err != nil {
				return err
			}
		}
		return nil
	}
	var all map[string]json.RawMessage
	if err := json.Unmarshal(text, &all); err != nil {
		return err
	}
	for _, name := range sorted(all) {
		if err := wrongAt(join(path, name), all[name], t.Elem()); err != nil {
			return err
		}
	}
	return nil
}

// fieldsOf adds the fields of a struct by their names in JSON; those of what is embedded are its own.
func fieldsOf(t reflect.Type, into map[string]reflect.Type) {
	for f := range t.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case name == "-" || !f.IsExported() && !f.Anonymous:
		case name == "" && f.Anonymous:
			fieldsOf(f.Type, into)
		default:
			into[cmp.Or(name, f.Name)] = f.Type
		}
	}
}

func unknownField(path, name string, fields map[string]reflect.Type) error {
	in := ""
	if path != "" {
		in = " in " + path
	}
	best, least := "", max(2, len(name)/3)+1
	for _, f := range sorted(fields) {
		if n := edits(strings.ToLower(f), strings.ToLower(name)); n < least {
			best, least = f, n
		}
	}
	if best != "" {
		return fmt.Errorf("unknown field %q%s: did you mean %s?", name, in, best)
	}
	return fmt.Errorf("unknown field %q%s: there are %s", name, in, strings.Join(sorted(fields), ", "))
}

// instead says what a field of a type takes.
func instead(err error, t reflect.Type) string {
	number := false
	if e, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		number = strings.HasPrefix(e.Value, "number")
	}
	switch t.Kind() {
	case reflect.String:
		return "write a text; quote it if it looks like something else"
	case reflect.Bool:
		return "write true or false"
	case reflect.Int32, reflect.Int64, reflect.Int:
		if number {
			return fmt.Sprintf("write a whole number between %d and %d", int64(-1)<<(t.Bits()-1), int64(1)<<(t.Bits()-1)-1)
		}
		return "write a whole number"
	case reflect.Struct, reflect.Map:
		return "write fields"
	case reflect.Slice:
		return "write a list"
	}
	return plain(err).Error()
}

// brief is a value as it is written, or its beginning.
func brief(text []byte) string {
	const most = 40
	switch {
	case text[0] == '{':
		return "an object"
	case text[0] == '[':
		return "a list"
	case len(text) > most:
		return strings.ToValidUTF8(string(text[:most]), "") + "..."
	}
	return string(text)
}

func join(path, name string) string { return strings.TrimPrefix(path+"."+name, ".") }

func sorted[V any](m map[string]V) []string {
	var all []string
	for name := range m {
		all = append(all, name)
	}
	slices.Sort(all)
	return all
}

// edits is how many letters have to be put in, left out or changed between a and b (Levenshtein).
func edits(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		before := row[0]
		row[0]++
		for j := range len(b) {
			n := before
			if a[i] != b[j] {
				n = 1 + min(before, row[j], row[j+1])
			}
			before, row[j+1] = row[j+1], n
		}
	}
	return row[len(b)]
}
