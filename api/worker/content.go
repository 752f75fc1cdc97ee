package worker

import (
	"fmt"
	"mime"
	"strings"
)

// NotJSON says, for a client, why a request with these headers is not taken as JSON, or nothing.
// A page of another site can make a browser send what needs no permission (a form's types,
// text/plain, or no type at all), and must not get models to compute.
func NotJSON(header func(name string) string) string {
	if coding := header("Content-Encoding"); coding != "" && !strings.EqualFold(coding, "identity") {
		return fmt.Sprintf("The body has the content encoding %.100q. Send it as it is, without Content-Encoding.", coding)
	}
	written := header("Content-Type")
	if written == "" && header("Origin") == "" {
		return ""
	}
	kind, _, err := mime.ParseMediaType(written)
	if (err == nil || err == mime.ErrInvalidMediaParameter) && (kind == "application/json" || strings.HasPrefix(kind, "application/") && strings.HasSuffix(kind, "+json")) {
		return ""
	}
	return fmt.Sprintf("The content type %.100q is not JSON. Send the header Content-Type: application/json; curl -d alone sends that of a form.", written)
}
