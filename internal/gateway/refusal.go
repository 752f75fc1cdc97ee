package gateway

import (
	"encoding/json"
	"net/http"
	"strconv"
)

// refusal is an answer of the gateway's own that is no success.
type refusal struct {
	status  int
	kind    string
	code    string
	param   string // the field that is wrong, or ""
	message string
	retry   int // seconds until another try may help; 0: it will not
}

// The kinds of errors, as OpenAI's clients know them.
const (
	kindInvalid = "invalid_request_error"
	kindLimit   = "rate_limit_error"
	kindServer  = "server_error"
)

// body is the refusal in OpenAI's shape.
func (r *refusal) body() []byte {
	type detail struct {
		Message string  `json:"message"`
		Type    string  `json:"type"`
		Param   *string `json:"param"`
		Code    string  `json:"code"`
	}
	d := detail{Message: r.message, Type: r.kind, Code: r.code}
	if r.param != "" {
		d.Param = &r.param
	}
	b, err := json.Marshal(map[string]detail{"error": d})
	if err != nil {
		panic(err) // strings always can be encoded
	}
	return b
}

func (r *refusal) write(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/json")
	if r.retry > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(r.retry))
	}
	w.WriteHeader(r.status)
	w.Write(r.body())
}

// ends refuses, or breaks off, what is left when the gateway ends.
func ends() *refusal {
	return &refusal{
		status: http.StatusServiceUnavailable, kind: kindServer, code: "shutting_down", retry: 1,
		message: "This gateway ends, and the request took longer than it could wait. Send it again.",
	}
}
