package history

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/estiba/estiba/api/worker"
)

// Options say whom to ask.
type Options struct {
	Server    string // address of an `estiba serve`, or of an operator's --debug-listen; empty: the cluster of the kubeconfig
	Namespace string // Estiba's own, in a cluster; empty: where its lease is
}

// maxSnapshot bounds an answer: 10,000 Models and as many homes are about 40 MiB.
const maxSnapshot = 1 << 30

// asking bounds the wait for one answer.
const asking = time.Minute

// Latest is the latest decision of the operator that leads, or of an estiba serve.
func Latest(ctx context.Context, o Options) (Snapshot, error) {
	ctx, cancel := context.WithTimeout(ctx, asking)
	defer cancel()
	var s Snapshot
	err := o.do(ctx, http.MethodGet, PathSnapshot, nil, patience, func(body io.Reader) error {
		if err := json.NewDecoder(body).Decode(&s); err != nil {
			return err
		}
		if s.Version != Version {
			return fmt.Errorf("it speaks version %d, this program %d: use an estiba of the same version", s.Version, Version)
		}
		return nil
	})
	return s, err
}

// Inspect has a worker of a pool ("namespace/name"; empty: any) read a source's header.
func Inspect(ctx context.Context, o Options, pool string, r worker.InspectRequest) (worker.Inspection, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*asking)
	defer cancel()
	var in worker.Inspection
	body, err := json.Marshal(InspectRequest{Pool: pool, Request: r})
	if err != nil {
		return in, err
	}
	err = o.do(ctx, http.MethodPost, PathInspect, body, 2*asking, func(body io.Reader) error { return json.NewDecoder(body).Decode(&in) })
	return in, err
}

// Fetch copies the decisions that are kept to w, as Read takes them.
func Fetch(ctx context.Context, o Options, w io.Writer) error {
	return o.do(ctx, http.MethodGet, PathHistory, nil, patience, func(body io.Reader) error {
		_, err := io.Copy(w, body)
		return err
	})
}

// do asks one thing.
func (o Options) do(ctx context.Context, method, path string, body []byte, patience time.Duration, read func(io.Reader) error) error {
	base := o.Server
	if base == "" {
		local, end, err := forward(ctx, o.Namespace)
		if err != nil {
			return err
		}
		defer end()
		base = local
	}
	address, err := Address(base)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, method, address.JoinPath(path).String(), bytes.NewReader(body))
	if err != nil {
		return err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	// Not the environment's proxy: what is asked is this machine, or a tunnel that begins here.
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	err = Exchange(ctx, client, req, patience, func(body io.Reader) error {
		return read(http.MaxBytesReader(nil, io.NopCloser(body), maxSnapshot))
	})
	if err != nil && o.Server == "" {
		return fmt.Errorf("ask the operator: %w", err)
	}
	return err
}
