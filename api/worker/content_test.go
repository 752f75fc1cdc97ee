package worker

import (
	"net/http"
	"strings"
	"testing"
)

func TestNotJSON(t *testing.T) {
	for _, c := range []struct {
		kind, coding, origin string
		says                 string // "": taken
	}{
		{"", "", "", ""},
		{"application/json", "", "http://elsewhere", ""},
		{"Application/JSON; charset=utf-8", "identity", "", ""},
		{"application/json; charset", "", "", ""},
		{"application/vnd.api+json", "", "", ""},
		{"", "", "http://elsewhere", "not JSON"},
		{"text/plain", "", "", "not JSON"},
		{"text/x+json", "", "", "not JSON"},
		{"text/plain; application/json", "", "", "not JSON"},
		{"application/x-www-form-urlencoded", "", "", "curl -d"},
		{"multipart/form-data; boundary=x", "", "", "not JSON"},
		{"application/json", "gzip", "", "gzip"},
	} {
		h := http.Header{}
		for name, value := range map[string]string{"Content-Type": c.kind, "Content-Encoding": c.coding, "Origin": c.origin} {
			if value != "" {
				h.Set(name, value)
			}
		}
		if got := NotJSON(h.Get); (got == "") != (c.says == "") || !strings.Contains(got, c.says) {
			t.Errorf("%v: %q", h, got)
		}
	}
}
