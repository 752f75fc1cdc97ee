package gateway

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/estiba/estiba/api/worker"
)

const (
	// maxTries bounds how often one request is given to workers.
	maxTries = 4
	// statusLeft is counted for a client that left before its answer.
	statusLeft = 499
	// unreadTimeout bounds how long a client may leave a piece of its answer unread:
	// until it ends, the request holds its model.
	unreadTimeout = time.Minute
)

// infer answers one request for a model.
func (g *Gateway) infer(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	id := requestID(r.Header.Get(worker.HeaderRequestID))
	w.Header().Set(worker.HeaderRequestID, id)
	key, status := "", 0
	defer func() { g.metrics.ended(key, status, time.Since(start)) }()

	m, body, refused := g.admit(w, r)
	if refused != nil {
		status = refused.status
		refused.write(w)
		return
	}
	defer body.close()
	key = m.key
	q := request{w: w, r: r, m: m, body: body, id: id, expires: start.Add(g.o.HoldTimeout)}
	for done := false; !done; {
		status, done = g.try(&q)
	}
	if q.cut {
		panic(http.ErrAbortHandler) // the client must see that its answer is cut
	}
}

// request is an admitted request on its way to a worker.
type request struct {
	w       http.ResponseWriter
	r       *http.Request
	m       *model
	body    *payload
	id      string
	expires time.Time // it is not held longer
	tried   tries
	cut     bool // the answer ended early, and the client cannot see it otherwise
}

// try gives a request to one worker, once there is one. It returns the status
// that the client got, or done=false if another worker should be tried.
func (g *Gateway) try(q *request) (status int, done bool) {
	ctx, cancel := context.WithCancel(q.r.Context())
	defer cancel()
	defer context.AfterFunc(g.ending, cancel)()
	h, refused := g.acquire(ctx, q)
	if refused == nil {
		defer g.release(q.m, h)
		res, sent, err := g.send(ctx, q, h)
		var taken bool
		taken, refused = g.judge(ctx, q, h, res, sent, err)
		switch {
		case taken && sent:
			q.body.close() // an answer takes long, and nobody needs the question any more
			fallthrough
		case taken:
			return g.pass(ctx, q, h, res), true
		case refused == nil:
			g.metrics.retries.Inc()
			return 0, false
		}
	}
	switch {
	case q.r.Context().Err() != nil:
		return statusLeft, true
	case ctx.Err() != nil:
		refused = ends()
	}
	refused.write(q.w)
	return refused.status, true
}

// judge says what to do with a worker's answer: pass it on (taken), refuse the
// request, or try again (neither). An answer that is not passed on is closed.
//
// Tried again is only what has not been done: a request that has been sent to
// its end may be what killed its worker, and must not kill the next one.
func (g *Gateway) judge(ctx context.Context, q *request, h *home, res *http.Response, sent bool, err error) (taken bool, refused *refusal) {
	m, tried := q.m, &q.tried
	tried.add(h.worker, time.Now())
	switch {
	case ctx.Err() != nil:
		if res != nil {
			res.Body.Close()
		}
		return false, lost(h)
	case err != nil && sent:
		g.o.Log.Warn("worker lost", "model", m.key, "worker", h.worker, "error", err)
		return false, lost(h)
	case err != nil:
		g.o.Log.Info("worker not reached", "model", m.key, "worker", h.worker, "error", err)
	case res.StatusCode == worker.StatusLacks:
		res.Body.Close()
	case mayHelp(res.StatusCode) && tried.count < maxTries && g.another(m, tried):
		res.Body.Close()
	default:
		return true, nil
	}
	if tried.count >= maxTries {
		g.mu.Lock()
		defer g.mu.Unlock()
		return false, unavailable(m.spec, 5, fmt.Sprintf("was not taken by any of %d workers", tried.count))
	}
	return false, nil
}

// mayHelp: another replica may have room, or be well.
func mayHelp(status int) bool {
	return status == http.StatusTooManyRequests || status == http.StatusBadGateway || status == http.StatusServiceUnavailable
}

func lost(h *home) *refusal {
	return &refusal{status: http.StatusBadGateway, kind: kindServer, code: "worker_lost",
		message: fmt.Sprintf("Worker %s went away before it answered. Send the request again.", h.worker)}
}

// send gives one worker the request. sent is true once the whole of it is on its way.
func (g *Gateway) send(ctx context.Context, q *request, h *home) (res *http.Response, sent bool, err error) {
	var written atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		WroteRequest: func(i httptrace.WroteRequestInfo) { written.Store(i.Err == nil) },
	})
	to := *h.url
	to.Path, to.RawQuery = q.r.URL.Path, q.r.URL.RawQuery
	req := (&http.Request{
		Method:        http.MethodPost,
		URL:           &to,
		Host:          to.Host,
		Header:        outgoing(q.r.Header, h.token, q.m.key, q.id, g.tenant(q.r.Header)),
		Body:          q.body.reader(),
		GetBody:       func() (io.ReadCloser, error) { return q.body.reader(), nil },
		ContentLength: int64(q.body.size),
	}).WithContext(ctx)
	res, err = g.client.RoundTrip(req)
	return res, written.Load(), err
}

// hopByHop are headers between neighbours (RFC 9110, section 7.6.1).
var hopByHop = map[string]bool{
	"Connection": true, "Keep-Alive": true, "Proxy-Authenticate": true, "Proxy-Authorization": true,
	"Proxy-Connection": true, "Te": true, "Trailer": true, "Transfer-Encoding": true, "Upgrade": true,
}

// passes reports whether a header is for the other side.
func passes(name string, connection []string) bool {
	if hopByHop[name] || strings.HasPrefix(name, "Estiba-") {
		return false
	}
	for _, list := range connection {
		for field := range strings.SplitSeq(list, ",") {
			if strings.EqualFold(strings.TrimSpace(field), name) {
				return false
			}
		}
	}
	return true
}

// outgoing are the headers that a worker gets. The client's key stays here, the
// pool's token goes; answers come uncompressed, since an error may have to follow them.
func outgoing(from http.Header, token, key, id, tenant string) http.Header {
	to := make(http.Header, len(from)+5)
	for name, values := range from {
		if name != "Authorization" && name != "Accept-Encoding" && name != "Expect" && passes(name, from["Connection"]) {
			to[name] = values
		}
	}
	if to["User-Agent"] == nil {
		to["User-Agent"] = []string{""} // else the transport writes its own
	}
	to["Authorization"] = []string{"Bearer " + token}
	to[worker.HeaderModel] = []string{key}
	to[worker.HeaderRequestID] = []string{id}
	if tenant != "" {
		to[worker.HeaderTenant] = []string{tenant}
	}
	return to
}

// tenant is whose a request is, if somebody in front of the gateway says so.
func (g *Gateway) tenant(from http.Header) string {
	if g.o.TenantHeader == "" {
		return ""
	}
	return shortened(from.Get(g.o.TenantHeader))
}

var chunks = sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}

// pass copies a worker's answer to the client as it comes, and returns the status that counts.
func (g *Gateway) pass(ctx context.Context, q *request, h *home, res *http.Response) int {
	defer res.Body.Close()
	to := q.w.Header()
	for name, values := range res.Header {
		if name != worker.HeaderRequestID && passes(name, res.Header["Connection"]) {
			to[name] = values
		}
	}
	events := strings.HasPrefix(res.Header.Get("Content-Type"), "text/event-stream")
	q.w.WriteHeader(res.StatusCode)
	buf := chunks.Get().(*[]byte)
	defer chunks.Put(buf)
	var err error
	if events {
		err = copyEvents(q.w, res.Body, *buf)
	} else {
		err = copyChunks(q.w, res.Body, *buf, res.ContentLength < 0)
	}
	_, dead := errors.AsType[readError](err)
	switch {
	case err == nil:
		return res.StatusCode
	case q.r.Context().Err() != nil || !dead:
		return statusLeft
	}
	refused := ends()
	if ctx.Err() == nil {
		g.o.Log.Warn("worker lost within an answer", "model", q.m.key, "worker", h.worker, "error", err)
		refused = lost(h)
		refused.message = fmt.Sprintf("Worker %s went away within its answer. Send the request again.", h.worker)
	}
	if events {
		fmt.Fprintf(q.w, "data: %s\n\n", refused.body())
	}
	q.cut = !events
	return refused.status
}

// readError is a failure to read a worker's answer, not to write it to the client.
type readError struct{ error }

// copyChunks copies until EOF; with flush, what was read is sent at once.
func copyChunks(w http.ResponseWriter, r io.Reader, buf []byte, flush bool) error {
	rc := http.NewResponseController(w)
	defer rc.SetWriteDeadline(time.Time{}) // the connection goes on
	for {
		n, err := r.Read(buf)
		if n > 0 {
			rc.SetWriteDeadline(time.Now().Add(unreadTimeout)) // a writer that cannot is one of a test
			if _, err := w.Write(buf[:n]); err != nil {
				return err
			}
			if flush && err != io.EOF {
				rc.Flush()
			}
		}
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return readError{err}
		}
	}
}

// copyEvents copies server-sent events until EOF, each as soon as it is whole:
// a client never has half an event when its worker dies. An event that is larger
// than buf is passed on in parts.
func copyEvents(w http.ResponseWriter, r io.Reader, buf []byte) error {
	rc := http.NewResponseController(w)
	defer rc.SetWriteDeadline(time.Time{})
	parted := false // the client has the beginning of an event
	for have := 0; ; {
		n, err := r.Read(buf[have:])
		have += n
		whole := endOfEvents(buf[:have])
		switch {
		case whole > 0:
			parted = false
		case err == io.EOF || have == len(buf):
			whole, parted = have, true
		}
		if err == io.EOF {
			whole = have
		}
		if whole > 0 {
			rc.SetWriteDeadline(time.Now().Add(unreadTimeout))
			if _, err := w.Write(buf[:whole]); err != nil {
				return err
			}
			rc.Flush()
			have = copy(buf, buf[whole:have])
		}
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			if parted {
				w.Write([]byte("\n\n"))
			}
			return readError{err}
		}
	}
}

// endOfEvents is the length of the whole events in b: up to the last empty line.
func endOfEvents(b []byte) int {
	for end := len(b); end > 0; {
		last := bytes.LastIndexByte(b[:end], '\n')
		if last < 0 {
			return 0
		}
		if before := bytes.TrimSuffix(b[:last], []byte("\r")); bytes.HasSuffix(before, []byte("\n")) {
			return last + 1
		}
		end = last
	}
	return 0
}

// requestID is the client's, if it can be written into logs, or a new one.
func requestID(id string) string {
	if id == "" || len(id) > 128 || strings.ContainsFunc(id, func(c rune) bool { return c <= ' ' || c > '~' }) {
		return rand.Text()
	}
	return id
}
