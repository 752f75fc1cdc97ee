package weights

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
)

// JSONError puts an error of encoding/json into the words of a file's author, who
// knows the fields and not the types of this program; others are as they were.
func JSONError(err error) error {
	e, ok := errors.AsType[*json.UnmarshalTypeError](err)
	if !ok {
		return err
	}
	is, want := "a "+e.Value, "an object"
	switch {
	case e.Value == "array":
		is = "a list"
	case e.Value == "object":
		is = "an object"
	case e.Value == "bool":
		is = "true or false"
	}
	switch e.Type.Kind() {
	case reflect.String:
		want = "a string"
	case reflect.Bool:
		want = "true or false"
	case reflect.Int, reflect.Int32, reflect.Int64:
		want = "a whole number"
	case reflect.Float64:
		want = "a number"
	case reflect.Slice, reflect.Array:
		want = "a list"
	}
	if e.Field == "" {
		return fmt.Errorf("it is %s, not %s", is, want)
	}
	return fmt.Errorf("%s is %s, not %s", e.Field, is, want)
}
