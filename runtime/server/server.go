// Package server is a worker's HTTP: inference for clients and gateways (openai.go),
// assignment, state and inspection for the control plane (control.go), health
// and metrics, all on one listener. Start with New and Serve.
package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	api "github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/runtime/worker"
)

// Options of a server. Token is required.
type Options struct {
	// Token is the pool's token; it is asked for with each request that needs it.
	Token func() (string, error)
	// Registry is what /metrics shows and where the worker's series go; nil means one of its own.
	Registry *prometheus.Registry
	Log      *slog.Logger // nil means slog.Default()
}

// Server answers for a worker. It is an http.Handler.
type Server struct {
	worker   *worker.Worker
	measured measured
	token    func() (string, error)
	log      *slog.Logger
	mux      *http.ServeMux
	ending   context.Context // ends the streams of states
	end      context.CancelFunc
}

// New is the HTTP side of a worker, which somebody else runs.
func New(w *worker.Worker, o Options) *Server {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Registry == nil {
		o.Registry = prometheus.NewRegistry()
	}
	s := &Server{worker: w, measured: measured{all: map[string]*Measures{}}, token: o.Token, log: o.Log, mux: http.NewServeMux()}
	s.ending, s.end = context.WithCancel(context.Background())
	o.Registry.MustRegister(collector{w, &s.measured})
	openai := &OpenAI{Use: s.use, Homes: func() []api.HomeState { return w.State().Homes }}
	openai.Routes(s.mux)
	s.control()
	s.mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok\n") })
	s.mux.HandleFunc("GET /readyz", s.ready)
	s.mux.Handle("GET /metrics", promhttp.HandlerFor(o.Registry, promhttp.HandlerOpts{}))
	return s
}

func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Body != nil && r.Body != http.NoBody {
		r.Body = &patientBody{ReadCloser: r.Body, conn: http.NewResponseController(w)}
	}
	s.mux.ServeHTTP(w, r)
}

// Close ends the streams of states, which have no end of their own.
func (s *Server) Close() { s.end() }

// use wakes a home for an OpenAI request. A name without a home may be one that
// clients send: gateways know better and send the home's own.
func (s *Server) use(ctx context.Context, model string) (Loaded, func(), error) {
	l, release, err := s.worker.Use(ctx, model)
	if errors.Is(err, worker.ErrLacks) {
		for _, h := range s.worker.State().Homes {
			if h.Model != model && slices.Contains(h.ServedNames, model) {
				l, release, err = s.worker.Use(ctx, h.Model)
				break
			}
		}
	}
	if err != nil {
		return Loaded{}, nil, err
	}
	namespace, _, _ := strings.Cut(l.Home.Model, "/")
	return Loaded{
		Engine: l.Engine, Replica: l.Replica, Tenant: namespace, MaxTokens: l.MaxTokens,
		Tokenizer: l.Model.Tokenizer, Template: l.Model.Template, BOS: l.Model.BOS, EOS: l.Model.EOS, Vocabulary: l.Model.Vocabulary,
		Pooling: l.Model.DefaultPooling(), Measures: s.measured.of(l.Home.Model),
		JoulesPerToken: func() (float64, bool) { return s.worker.JoulesPerToken(l.Home.Model) },
	}, release, nil
}

// ready means able to take assignments.
func (s *Server) ready(w http.ResponseWriter, _ *http.Request) {
	if s.worker.Draining() {
		http.Error(w, "draining", http.StatusServiceUnavailable)
		return
	}
	io.WriteString(w, "ok\n")
}

// How long a peer may take.
const (
	headerTimeout = 10 * time.Second
	bodyTimeout   = 30 * time.Second
	writeTimeout  = 10 * time.Second // of one state in a stream
	endTimeout    = 5 * time.Second  // from the last answer to closed connections
)

// patientBody bounds how long a client may take to send its body: until it has
// come, it holds a model on its device.
type patientBody struct {
	io.ReadCloser
	conn    *http.ResponseController
	started bool
}

func (b *patientBody) Read(p []byte) (int, error) {
	if !b.started {
		b.started = true
		b.conn.SetReadDeadline(time.Now().Add(bodyTimeout)) // a connection without deadlines has none
	}
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		b.conn.SetReadDeadline(time.Time{}) // from here on a read only finds out that the client has left
	}
	return n, err
}

// Serve runs a worker and answers for it on a listener until ctx ends; then it
// drains for at most drain and returns. An error is one that ended it early.
func Serve(ctx context.Context, l net.Listener, w *worker.Worker, o Options, drain time.Duration) error {
	s := New(w, o)
	defer s.Close()
	srv := &http.Server{Handler: s, ReadHeaderTimeout: headerTimeout, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10, ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug)}

	working, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	ran, served := make(chan error, 1), make(chan error, 1)
	go func() { ran <- w.Run(working) }()
	go func() { served <- srv.Serve(l) }()
	s.log.Info("worker listens", "address", l.Addr().String())

	var err error
	select {
	case <-ctx.Done():
		bound, cancel := context.WithTimeout(working, drain)
		if e := w.Drain(bound); e != nil {
			s.log.Warn("requests were cut short", "error", e)
		}
		cancel()
	case err = <-ran:
		ran <- nil
		if err == nil {
			err = errors.New("the worker ended by itself")
		}
	case err = <-served:
		err = fmt.Errorf("serve %s: %w", l.Addr(), err)
	}
	stop() // requests that are left end with an error
	s.Close()
	err = errors.Join(err, <-ran)
	bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
	defer cancel()
	if srv.Shutdown(bound) != nil {
		srv.Close()
	}
	s.log.Info("worker ended")
	return err
}
