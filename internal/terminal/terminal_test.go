package terminal

import (
	"strings"
	"testing"
)

func TestEscape(t *testing.T) {
	for in, want := range map[string][2]string{
		"model a, größer":     {"model a, größer", "model a, größer"},
		"a\x1b[2Jb":           {`a\x1b[2Jb`, `a\x1b[2Jb`},
		"a\nb\tc\r":           {`a\nb\tc\r`, "a\nb\tc\\r"},
		"a\u202eb\u009bc\x7f": {`a\u202eb\u009bc\x7f`, `a\u202eb\u009bc\x7f`},
		"a\xffb":              {"a\ufffdb", "a\ufffdb"},
	} {
		if line, text := Line(in), Text(in); line != want[0] || text != want[1] {
			t.Errorf("%q is %q and %q, want %q", in, line, text, want)
		}
	}
	var b strings.Builder
	if n, err := Writer(&b).Write([]byte("a\x07\n")); n != 3 || err != nil || b.String() != "a\\a\n" {
		t.Errorf("%d %v %q", n, err, b.String())
	}
}
