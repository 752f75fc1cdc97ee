package cli

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
)

// maxLine bounds a line of standard input, in bytes.
const maxLine = 64 << 20

// uninterrupted does work that may wait for standard input or output, and ends
// with ctx at once: what is waiting then is left behind, and ends with the process.
func uninterrupted(ctx context.Context, work func() error) error {
	done := make(chan error, 1)
	go func() { done <- work() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return errors.New("interrupted")
	}
}

// answerLines answers each line of in with one on out: an object of JSON with a
// field of what answer gives, or {"error": …}. A line that is no JSON at all is
// answered so too, and the first of those is returned at the end.
func answerLines(in io.Reader, out io.Writer, answer func(line []byte) (field string, value any, err error)) (failed error) {
	lines, enc := bufio.NewReaderSize(in, 64<<10), json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	for n := 1; ; n++ {
		line, end := readLine(lines)
		if end != nil && end != io.EOF {
			return fmt.Errorf("standard input, line %d: %w", n, end)
		}
		if line = bytes.TrimSpace(line); len(line) > 0 {
			field, value, err := "", any(nil), notJSON(line)
			if err != nil {
				err = lineError{err}
				failed = cmp.Or(failed, fmt.Errorf("standard input, line %d: %w", n, err))
			} else {
				field, value, err = answer(line)
			}
			if _, ok := errors.AsType[lineError](err); ok {
				err = fmt.Errorf("standard input, line %d: %w", n, err)
			}
			if err != nil {
				field, value = "error", err.Error()
			}
			if err := enc.Encode(map[string]any{field: value}); err != nil {
				return err
			}
		}
		if end == io.EOF {
			return failed
		}
	}
}

// readLine reads up to the end of a line, or of everything, which is io.EOF.
func readLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(line)+len(part) > maxLine {
			return nil, fmt.Errorf("it has more than %d MiB, which are the most that are read", maxLine>>20)
		}
		line = append(line, part...)
		if !errors.Is(err, bufio.ErrBufferFull) {
			return line, err
		}
	}
}

// lineError says that a line does not ask for anything.
type lineError struct{ error }

// notJSON says why a line is no JSON; nil: it is.
func notJSON(line []byte) error {
	if json.Valid(line) {
		return nil
	}
	var whatever json.RawMessage
	return fmt.Errorf("it is no JSON: %w", json.Unmarshal(line, &whatever))
}

// decodeLine reads an object of JSON into v, a pointer to a struct.
func decodeLine(line []byte, v any) error {
	err := json.Unmarshal(line, v)
	wrong, ok := errors.AsType[*json.UnmarshalTypeError](err)
	switch {
	case err == nil:
		return nil
	case !ok:
		return lineError{err}
	case wrong.Field == "":
		return lineError{fmt.Errorf("give an object, not %s", article(wrong.Value))}
	}
	want := "an object"
	switch wrong.Type.Kind() {
	case reflect.String:
		want = "a string"
	case reflect.Bool:
		want = "true or false"
	case reflect.Int32:
		want = "whole numbers of at most 31 bits"
	case reflect.Slice:
		want = "a list"
	}
	return lineError{fmt.Errorf("%q: give %s, not %s", wrong.Field, want, article(wrong.Value))}
}

// article puts one before what encoding/json calls a value, such as "array" or "number 1.5".
func article(value string) string {
	value = strings.Replace(value, "array", "list", 1)
	switch {
	case strings.HasPrefix(value, "number "):
		return strings.TrimPrefix(value, "number ")
	case value == "bool":
		return "true or false"
	case strings.HasPrefix(value, "o"):
		return "an " + value
	}
	return "a " + value
}
