package server

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	api "github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/runtime/backend"
	"github.com/estiba/estiba/runtime/engine"
	"github.com/estiba/estiba/runtime/grammar"
	"github.com/estiba/estiba/runtime/sampling"
	"github.com/estiba/estiba/runtime/template"
	"github.com/estiba/estiba/runtime/tokenizer"
	"github.com/estiba/estiba/runtime/worker"
)

const (
	// maxBody bounds the body of one request.
	maxBody = 8 << 20
	// readTimeout bounds how long a client of a stream may leave an event unread:
	// it holds the model.
	readTimeout = 30 * time.Second
	// aheadAfter is how long a model may take to wake before the request's body is
	// read meanwhile: until it has come, nothing shows that the client has left.
	aheadAfter = 100 * time.Millisecond
	maxMessage = 1000 // bytes of an error's message
)

// OpenAI answers the OpenAI endpoints of a worker: a gateway's requests, which
// name the home in Estiba-Model, and a client's own, which name it in the body.
type OpenAI struct {
	// Use holds a home that is resident, after it has woken it if need be, until
	// the returned function is called. worker.ErrLacks: not at home here, or it drains.
	Use func(ctx context.Context, model string) (Loaded, func(), error)
	// Homes are what GET /v1/models lists.
	Homes func() []api.HomeState
}

// Loaded is what an answer needs of a resident home.
type Loaded struct {
	Engine    *engine.Engine
	Replica   string               // its name there
	Tenant    string               // whose its requests are, unless somebody says otherwise
	MaxTokens int                  // context
	Tokenizer *tokenizer.Tokenizer // nil: the checkpoint has no tokenizer files
	Template  *template.Template   // nil: chats are rendered as ChatML
	BOS, EOS  string               // its tokens around a text, for templates
	Pooling   string               // of embeddings: a name of engine.Poolings, or of what cannot be done
	// Vocabulary are the texts of tokens, for grammars.
	Vocabulary func() *grammar.Vocabulary
	Measures   *Measures // nil: nothing is measured
	// JoulesPerToken is what a token of the model takes, as a mean over the last minutes; false: nobody
	// knows. Nil: the device does not tell.
	JoulesPerToken func() (float64, bool)
}

// template is the model's own, or ChatML.
func (l Loaded) template() *template.Template {
	if l.Template == nil {
		return template.ChatML()
	}
	return l.Template
}

// asked is a request that has been read and checked.
type asked interface {
	modelName() string // as the client calls it
	// answer answers, or gives the error that is the answer.
	answer(context.Context, http.ResponseWriter, call) *apiError
}

// call is a request's model, and what else is known when it begins.
type call struct {
	Loaded
	arrived time.Time
	tenant  string // whose it is
}

// Routes adds the endpoints to a mux.
func (o *OpenAI) Routes(mux *http.ServeMux) {
	mux.HandleFunc("POST /v1/chat/completions", o.endpoint(parseChat))
	mux.HandleFunc("POST /v1/completions", o.endpoint(parseCompletion))
	mux.HandleFunc("POST /v1/embeddings", o.endpoint(parseEmbeddings))
	mux.HandleFunc("POST /tokenize", o.endpoint(parseTokenize))
	mux.HandleFunc("POST /detokenize", o.endpoint(parseDetokenize))
	mux.HandleFunc("GET /v1/models", o.models)
	mux.HandleFunc("/v1/", func(w http.ResponseWriter, r *http.Request) {
		fail(w, &apiError{status: http.StatusNotFound, Type: "invalid_request_error", Code: "not_found",
			Message: fmt.Sprintf("This version does not serve %s %.100q.", r.Method, r.URL.Path)})
	})
}

// apiError is an error as OpenAI's clients read it.
type apiError struct {
	status     int
	retryAfter int // seconds; 0: no use in trying again
	// elsewhere: nothing has been computed, and another worker, or another device of this one, may do it.
	elsewhere bool

	Message string `json:"message"`
	Type    string `json:"type"`
	Param   string `json:"param"`
	Code    string `json:"code"`
}

// MarshalJSON writes null for what is not known, as OpenAI does.
func (e *apiError) MarshalJSON() ([]byte, error) {
	null := func(s string) any {
		if s == "" {
			return nil
		}
		return s
	}
	return json.Marshal(map[string]any{"message": e.Message, "type": e.Type, "param": null(e.Param), "code": null(e.Code)})
}

func invalid(param, format string, args ...any) *apiError {
	return &apiError{status: http.StatusBadRequest, Type: "invalid_request_error", Param: param, Message: fmt.Sprintf(format, args...)}
}

func fail(w http.ResponseWriter, e *apiError) {
	if len(e.Message) > maxMessage { // it may quote a client that has much to say
		e.Message = strings.ToValidUTF8(e.Message[:maxMessage], "") + " …"
	}
	if e.retryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(e.retryAfter))
	}
	writeJSON(w, e.status, map[string]any{"error": e})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	body := encoded(v)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	w.Write(body)
}

// encoded is a value of our own as JSON, with texts as they are: nobody puts it into HTML.
func encoded(v any) []byte {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		panic(err) // only a number that is not one could do it
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

// endpoint answers requests that parse understands: find the home, read the
// body, then let the request answer itself.
func (o *OpenAI) endpoint(parse func([]byte) (asked, *apiError)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		arrived := time.Now()
		id := r.Header.Get(api.HeaderRequestID)
		if id == "" {
			id = rand.Text()
		}
		w.Header().Set(api.HeaderRequestID, id)
		if why := api.NotJSON(r.Header.Get); why != "" {
			fail(w, &apiError{status: http.StatusUnsupportedMediaType, Type: "invalid_request_error", Code: "unsupported_media_type", Message: why})
			return
		}
		// Cancelled when the client goes away, and when the answer is complete:
		// either frees what the request holds.
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()

		home := r.Header.Get(api.HeaderModel)
		var loaded Loaded
		read := sync.OnceValues(func() ([]byte, *apiError) { return readBody(r) })
		if home != "" { // before the body is read, so that a gateway may try elsewhere
			ahead := time.AfterFunc(aheadAfter, func() {
				if _, e := read(); e != nil {
					cancel()
				}
			})
			l, release, err := o.Use(ctx, home)
			unread := ahead.Stop()
			if err != nil {
				e := useError(err, home, true)
				if ctx.Err() != nil {
					if _, bad := read(); bad != nil { // which ended ctx
						e = bad
					}
				}
				conn := http.NewResponseController(w)
				conn.EnableFullDuplex() // else net/http reads some of the body first; a writer that cannot is one of a test
				fail(w, e)
				conn.Flush()
				if unread {
					discard(r)
				} else {
					read() // has that in hand
				}
				return
			}
			defer release()
			loaded = l
		}
		body, e := read()
		if e != nil {
			fail(w, e)
			return
		}
		req, e := parse(body)
		if e != nil {
			fail(w, e)
			return
		}
		if home == "" {
			l, release, err := o.Use(ctx, req.modelName())
			if err != nil {
				fail(w, useError(err, req.modelName(), false))
				return
			}
			defer release()
			loaded = l
		}
		if e := req.answer(ctx, w, call{Loaded: loaded, arrived: arrived, tenant: cmp.Or(r.Header.Get(api.HeaderTenant), loaded.Tenant)}); e != nil {
			switch {
			case e.status == api.StatusLacks && home == "":
				e = useError(worker.ErrLacks, req.modelName(), false)
			case e.elsewhere && home != "":
				e = useError(worker.ErrLacks, home, true)
			}
			fail(w, e)
		}
	}
}

func readBody(r *http.Request) ([]byte, *apiError) {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	if err != nil {
		return nil, &apiError{status: http.StatusBadRequest, Type: "invalid_request_error", Code: "incomplete_body", Message: "The body ended early."}
	}
	if len(body) > maxBody {
		discard(r)
		return nil, &apiError{status: http.StatusRequestEntityTooLarge, Type: "invalid_request_error", Code: "request_too_large",
			Message: fmt.Sprintf("The body is larger than %d MiB. Send less at once.", maxBody>>20)}
	}
	return body, nil
}

// discard reads what a client still sends, within bounds, so that it gets to
// read its answer instead of a reset connection.
func discard(r *http.Request) { io.CopyN(io.Discard, r.Body, 8*maxBody) }

// useError says why a model cannot be used. A gateway is told 421, a client 404.
func useError(err error, model string, gateway bool) *apiError {
	switch {
	case gateway && (errors.Is(err, worker.ErrLacks) || lostDevice(err)): // it needs another home
		return &apiError{status: api.StatusLacks, Type: "invalid_request_error", Code: "model_not_here",
			Message: fmt.Sprintf("This worker does not take requests for %s now.", model)}
	case errors.Is(err, worker.ErrLacks):
		return &apiError{status: http.StatusNotFound, Type: "invalid_request_error", Param: "model", Code: "model_not_found",
			Message: fmt.Sprintf("The model %q does not exist here. GET /v1/models lists those that do.", model)}
	}
	e := &apiError{status: http.StatusServiceUnavailable, retryAfter: 5, Type: "server_error", Code: "model_unavailable",
		Message: fmt.Sprintf("The model %s cannot serve now: %v", model, err)}
	if u, ok := errors.AsType[*worker.UnavailableError](err); ok {
		e.Message = fmt.Sprintf("The model %s cannot serve now (%s): %s", model, u.Reason, u.Message)
		e.retryAfter = max(1, int(math.Ceil(u.RetryAfter.Seconds())))
	}
	return e
}

// lostDevice: the model's device is lost, so that it needs another home.
func lostDevice(err error) bool {
	u, ok := errors.AsType[*worker.UnavailableError](err)
	return ok && u.Reason == api.ReasonDeviceLost
}

// submitError says why the engine did not take a request.
func submitError(err error) *apiError {
	if long, ok := errors.AsType[*engine.TooLongError](err); ok {
		more := ", and at least one more must fit"
		if long.PromptOnly {
			more = ""
		}
		e := invalid("prompt", "This model's maximum context length is %d tokens. The prompt has %d tokens%s. Shorten it.", long.MaxTokens, long.Prompt, more)
		e.Code = "context_length_exceeded"
		return e
	}
	switch {
	case errors.Is(err, engine.ErrEmptyPrompt):
		return invalid("prompt", "The prompt has no tokens.")
	case errors.Is(err, engine.ErrNoText):
		return invalid("model", "The model makes embeddings, not texts. Send its input to /v1/embeddings.")
	case errors.Is(err, engine.ErrNoEmbedding):
		return invalid("model", "The model makes no embeddings.")
	case errors.Is(err, engine.ErrVocabulary):
		return invalid("prompt", "%s.", capitalized(err.Error()))
	case errors.Is(err, engine.ErrQueueFull):
		e := &apiError{status: http.StatusTooManyRequests, retryAfter: 1, Type: "rate_limit_error", Code: "rate_limit_exceeded",
			Message: "Too many requests wait for this model. Try again in a moment."}
		if full, ok := errors.AsType[*engine.QueueFullError](err); ok {
			e.retryAfter = max(1, int(math.Ceil(full.RetryAfter.Seconds())))
		}
		return e
	case errors.Is(err, engine.ErrNoReplica), errors.Is(err, engine.ErrStopped): // it has gone since Use; nothing has been done
		return &apiError{status: api.StatusLacks, Type: "invalid_request_error", Code: "model_not_here",
			Message: "This worker does not take requests for the model now."}
	}
	return stepError(err)
}

// stepError says why a text ended before its time.
func stepError(err error) *apiError {
	_, grammatical := errors.AsType[*grammar.Error](err)
	if grammatical || errors.Is(err, grammar.ErrTooComplex) || errors.Is(err, sampling.ErrNothingAllowed) {
		return invalid("", "The text is not complete: %v.", err) // the request's own grammar
	}
	if errors.Is(err, engine.ErrRemoved) || errors.Is(err, engine.ErrStopped) {
		return &apiError{status: http.StatusServiceUnavailable, retryAfter: 1, Type: "server_error", Code: "model_unavailable",
			Message: fmt.Sprintf("The text is not complete: %v. Try again.", err)}
	}
	if d, ok := errors.AsType[*backend.DeviceError](err); ok && d.Lost {
		return &apiError{status: http.StatusServiceUnavailable, retryAfter: 1, elsewhere: true, Type: "server_error", Code: "model_unavailable",
			Message: fmt.Sprintf("The text is not complete, the model cannot serve now (%s): %v. The model needs another home. Try again.", api.ReasonDeviceLost, d)}
	}
	if errors.Is(err, engine.ErrBroken) {
		return &apiError{status: http.StatusServiceUnavailable, retryAfter: 5, Type: "server_error", Code: "model_unavailable",
			Message: fmt.Sprintf("The text is not complete, the model cannot serve now (%s): %v.", worker.Blamed(err), err)}
	}
	return &apiError{status: http.StatusInternalServerError, Type: "server_error", Code: "engine_error",
		Message: fmt.Sprintf("The text is not complete, the model failed: %v.", err)}
}

func capitalized(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

// models lists the homes under the names that clients send.
func (o *OpenAI) models(w http.ResponseWriter, _ *http.Request) {
	type model struct {
		ID      string `json:"id"`
		Object  string `json:"object"`
		Created int64  `json:"created"` // not known here
		OwnedBy string `json:"owned_by"`
	}
	list := []model{}
	for _, h := range o.Homes() {
		names := h.ServedNames
		if len(names) == 0 {
			names = []string{h.Model}
		}
		for _, name := range names {
			list = append(list, model{ID: name, Object: "model", OwnedBy: "estiba"})
		}
	}
	writeJSON(w, http.StatusOK, map[string]any{"object": "list", "data": list})
}
