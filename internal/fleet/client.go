package fleet

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// Dial opens a connection to "host:port".
type Dial func(ctx context.Context, network, address string) (net.Conn, error)

// NewClient makes the one kind of HTTP client with which Estiba's parts dial
// each other. dial replaces TCP, so that parts in one process can talk without
// a port; nil means TCP. Proxies of the environment are not used and redirects
// not followed: a token goes to the part it is meant for or nowhere.
func NewClient(dial Dial) *http.Client {
	if dial == nil {
		dial = (&net.Dialer{Timeout: 3 * time.Second, KeepAlive: 15 * time.Second}).DialContext
	}
	return &http.Client{
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
				c, err := dial(ctx, network, address)
				if err != nil {
					return nil, err
				}
				return conn{c}, nil
			},
			DisableCompression:  true, // bytes pass through as they are
			MaxIdleConnsPerHost: 512,  // a gateway has as many requests in flight at one worker
			IdleConnTimeout:     90 * time.Second,
			WriteBufferSize:     64 << 10, // prompts are long
			ReadBufferSize:      16 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// conn writes long bodies in large pieces from pooled memory; net.TCPConn would
// allocate 32 KiB for each request, and make four times as many system calls.
type conn struct{ net.Conn }

var pieces = sync.Pool{New: func() any { b := make([]byte, 128<<10); return &b }}

// ReadFrom is what a transport writes a request's body with. It waits for whole
// pieces: bodies here are in memory.
func (c conn) ReadFrom(r io.Reader) (total int64, err error) {
	buf := pieces.Get().(*[]byte)
	defer pieces.Put(buf)
	for {
		n, err := io.ReadFull(r, *buf)
		if n > 0 {
			written, err := c.Write((*buf)[:n])
			total += int64(written)
			if err != nil {
				return total, err
			}
		}
		switch err {
		case nil:
		case io.EOF, io.ErrUnexpectedEOF:
			return total, nil
		default:
			return total, err
		}
	}
}

// PoolToken is the token of a pool ("namespace/name"), with which operator and
// gateways show themselves to its workers. It is derived from the installation's
// key, so that no part needs to read the Secrets of others.
func PoolToken(key []byte, pool string) string { return token(key, "estiba pool "+pool) }

// GatewayToken is the token with which the operator reads gateways' streams.
func GatewayToken(key []byte) string { return token(key, "estiba gateway") }

func token(key []byte, purpose string) string {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(purpose))
	return hex.EncodeToString(mac.Sum(nil))
}

// Listener is a net.Listener in memory; its Dial connects to it from the same process.
type Listener struct {
	conns chan net.Conn
	done  chan struct{}
	close func()
}

// Listen makes a Listener.
func Listen() *Listener {
	done := make(chan struct{})
	return &Listener{conns: make(chan net.Conn), done: done, close: sync.OnceFunc(func() { close(done) })}
}

// Dial connects to the listener. It is a fleet.Dial.
func (l *Listener) Dial(ctx context.Context, _, _ string) (net.Conn, error) {
	near, far := net.Pipe()
	select {
	case l.conns <- far:
		return near, nil
	case <-l.done:
		return nil, &net.OpError{Op: "dial", Net: "memory", Addr: l.Addr(), Err: net.ErrClosed}
	case <-ctx.Done():
		return nil, &net.OpError{Op: "dial", Net: "memory", Addr: l.Addr(), Err: ctx.Err()}
	}
}

// Accept waits for the next Dial.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close refuses further Dials; open connections stay.
func (l *Listener) Close() error { l.close(); return nil }

// Addr says that the listener is in memory.
func (l *Listener) Addr() net.Addr { return memory{} }

type memory struct{}

func (memory) Network() string { return "memory" }
func (memory) String() string  { return "memory" }
