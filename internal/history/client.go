package history

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
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
	err := o.do(ctx, http.MethodGet, PathSnapshot, nil, func(body io.Reader) error {
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
	err = o.do(ctx, http.MethodPost, PathInspect, body, func(body io.Reader) error { return json.NewDecoder(body).Decode(&in) })
	return in, err
}

// Fetch copies the decisions that are kept to w, as Read takes them.
func Fetch(ctx context.Context, o Options, w io.Writer) error {
	return o.do(ctx, http.MethodGet, PathHistory, nil, func(body io.Reader) error {
		_, err := io.Copy(w, body)
		return err
	})
}

// do asks one thing.
func (o Options) do(ctx context.Context, method, path string, body []byte, read func(io.Reader) error) error {
	base := o.Server
	if base == "" {
		local, end, err := forward(ctx, o.Namespace)
		if err != nil {
			return err
		}
		defer end()
		base = local
	}
	base = strings.TrimSuffix(base, "/")
	if !strings.Contains(base, "://") {
		base = "http://" + base
	}
	req, err := http.NewRequestWithContext(ctx, method, base+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	// Not the environment's proxy: what is asked is this machine, or a tunnel that begins here.
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	resp, err := client.Do(req)
	if err != nil {
		if o.Server != "" {
			return fmt.Errorf("%w (is an estiba running there? --server names its address)", err)
		}
		return fmt.Errorf("ask the operator: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		why, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
		if text := strings.TrimSpace(string(why)); text != "" && resp.StatusCode != http.StatusNotFound {
			return errors.New(text)
		}
		return fmt.Errorf("ask for %s: %s (is this the address of an estiba serve, or of an operator's --debug-listen?)", base+path, resp.Status)
	}
	if err := read(http.MaxBytesReader(nil, resp.Body, maxSnapshot)); err != nil {
		return fmt.Errorf("read the answer of %s: %w", path, err)
	}
	return nil
}
