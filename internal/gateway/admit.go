package gateway

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/estiba/estiba/api/worker"
)

const (
	// maxBody bounds one request's body.
	maxBody = 8 << 20
	// maxRead bounds what is read of a body that is too large, so that its
	// sender gets to read the answer instead of a reset connection.
	maxRead = 64 << 20
	// maxBuffered bounds all bodies in memory.
	maxBuffered = 256 << 20
	// maxHeldBytes bounds those that wait for one model, so that a model that is
	// down leaves room for the requests of the others.
	maxHeldBytes = maxBuffered / 4
	// bodyTimeout bounds how long a body may take to arrive.
	bodyTimeout = time.Minute
	// maxPooled bounds the buffers that are kept for later requests.
	maxPooled = 1 << 20
)

// payload is a request's body, read once; every try reads it anew.
type payload struct {
	mu   sync.Mutex // a transport may still read when its answer is here
	data []byte     // nil once closed
	size int
	buf  *[]byte
	g    *Gateway
}

var buffers = sync.Pool{New: func() any { return new([]byte) }}

// admit reads a request and finds its model.
func (g *Gateway) admit(w http.ResponseWriter, r *http.Request) (*model, *payload, *refusal) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		return nil, nil, &refusal{status: http.StatusMethodNotAllowed, kind: kindInvalid, code: "method_not_allowed",
			message: fmt.Sprintf("%s takes POST, not %s.", r.URL.Path, shortened(r.Method))}
	}
	if why := worker.NotJSON(r.Header.Get); why != "" {
		return nil, nil, &refusal{status: http.StatusUnsupportedMediaType, kind: kindInvalid, code: "unsupported_media_type", message: why}
	}
	body, refused := g.readBody(w, r)
	if refused != nil {
		return nil, nil, refused
	}
	name, err := modelName(body.data)
	if err != nil {
		body.close()
		refused := &refusal{status: http.StatusBadRequest, kind: kindInvalid, code: "invalid_body",
			message: fmt.Sprintf("The request cannot be read: %v.", err)}
		if err == errNoModel || err == errModelKind {
			refused.param = "model"
		}
		return nil, nil, refused
	}
	m := g.lookup(name)
	if m == nil {
		body.close()
		return nil, nil, g.unknown(name)
	}
	return m, body, nil
}

// readBody reads the body of a request.
func (g *Gateway) readBody(w http.ResponseWriter, r *http.Request) (*payload, *refusal) {
	rc := http.NewResponseController(w)
	rc.SetReadDeadline(time.Now().Add(bodyTimeout)) // a writer that cannot is one of a test
	defer rc.SetReadDeadline(time.Time{})
	if r.ContentLength > maxBody {
		if r.ContentLength <= maxRead {
			io.Copy(io.Discard, r.Body)
		}
		return nil, tooLarge()
	}
	p := &payload{buf: buffers.Get().(*[]byte), g: g}
	p.data = (*p.buf)[:0]
	if !g.reserve(cap(p.data)) {
		p.data = nil
		return nil, full()
	}
	for {
		if len(p.data) == cap(p.data) && !p.grow(int(r.ContentLength)) {
			p.close()
			return nil, full()
		}
		n, err := r.Body.Read(p.data[len(p.data):cap(p.data)])
		p.data = p.data[:len(p.data)+n]
		switch {
		case len(p.data) > maxBody:
			p.close()
			io.CopyN(io.Discard, r.Body, maxRead)
			return nil, tooLarge()
		case err == io.EOF:
			p.size = len(p.data)
			return p, nil
		case errors.Is(err, os.ErrDeadlineExceeded):
			p.close()
			return nil, &refusal{status: http.StatusRequestTimeout, kind: kindInvalid, code: "request_timeout",
				message: fmt.Sprintf("The body did not arrive within %s.", bodyTimeout)}
		case err != nil:
			p.close()
			return nil, &refusal{status: http.StatusBadRequest, kind: kindInvalid, code: "incomplete_body",
				message: "The body ended early."}
		}
	}
}

// grow makes room: for a body of the announced length (-1: unknown) at once, but
// no more than 512 KiB on the word of a client.
func (p *payload) grow(announced int) bool {
	old := cap(p.data)
	size := max(2*old, min(announced, 512<<10))
	if announced > old {
		size = min(size, announced)
	}
	size = max(size, 4<<10)
	if !p.g.reserve(size - old) {
		return false
	}
	data := make([]byte, len(p.data), size)
	copy(data, p.data)
	p.data = data
	return true
}

// reserve counts bytes of bodies in memory. It reports false, and counts nothing, if there are too many.
func (g *Gateway) reserve(bytes int) bool {
	if g.buffered.Add(int64(bytes)) > maxBuffered {
		g.buffered.Add(-int64(bytes))
		return false
	}
	return true
}

// close ends all readers and gives the memory back. It may be called twice.
func (p *payload) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.data == nil {
		return
	}
	p.g.buffered.Add(-int64(cap(p.data)))
	if cap(p.data) <= maxPooled {
		*p.buf = p.data[:0]
		buffers.Put(p.buf)
	}
	p.data = nil
}

// reader reads the payload from its start.
func (p *payload) reader() io.ReadCloser { return &payloadReader{p: p} }

type payloadReader struct {
	p  *payload
	at int
}

func (r *payloadReader) Read(b []byte) (int, error) {
	r.p.mu.Lock()
	defer r.p.mu.Unlock()
	if r.p.data == nil {
		return 0, http.ErrBodyReadAfterClose
	}
	if r.at == len(r.p.data) {
		return 0, io.EOF
	}
	n := copy(b, r.p.data[r.at:])
	r.at += n
	return n, nil
}

// Close leaves the payload open for the next try.
func (r *payloadReader) Close() error { return nil }

func tooLarge() *refusal {
	return &refusal{status: http.StatusRequestEntityTooLarge, kind: kindInvalid, code: "request_too_large",
		message: fmt.Sprintf("The body is larger than %d MiB. Send less at once.", maxBody>>20)}
}

func full() *refusal {
	return &refusal{status: http.StatusServiceUnavailable, kind: kindServer, code: "overloaded", retry: 2,
		message: "The gateway has no memory for another request now. Try again."}
}
