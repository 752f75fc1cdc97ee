package standalone

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/internal/fleet"
	"github.com/estiba/estiba/internal/source"
	"github.com/estiba/estiba/runtime/backend/named"
	"github.com/estiba/estiba/runtime/device"
	"github.com/estiba/estiba/runtime/server"
	"github.com/estiba/estiba/runtime/worker"
)

const (
	defaultHeadroom = "5%"
	defaultDrain    = 5 * time.Minute
	endWithin       = 10 * time.Second // of running requests, when the process ends
)

// newWorker is a worker of a pool in this process, served in memory.
func (l *loop) newWorker(name string, p v1alpha1.InferencePool, memory int64) (*host, error) {
	headroom, err := strconv.Atoi(strings.TrimSuffix(cmp.Or(p.Spec.Memory.Headroom, defaultHeadroom), "%"))
	if err != nil {
		return nil, fmt.Errorf("spec.memory.headroom: %w", err)
	}
	log := l.server.o.Log.With("worker", name)
	var w *worker.Worker // which the monitor asks, once it is there
	devices, monitor, err := l.devices(device.Options{Memory: memory, Headroom: headroom}, func(uuid string) int64 {
		if w == nil {
			return 0
		}
		return w.Held(uuid)
	}, log)
	if err != nil {
		return nil, err
	}
	store, err := l.store(p)
	if err != nil {
		return nil, errors.Join(err, closed(monitor))
	}
	pool := p.Namespace + "/" + p.Name
	drain := defaultDrain
	if p.Spec.Update.Drain != nil {
		drain = p.Spec.Update.Drain.Duration
	}
	w, err = worker.New(worker.Options{
		Name: name, Pool: pool, Version: l.server.o.Version, Devices: devices, Monitor: monitor, Emulated: l.server.o.Emulate != "",
		Fetch: store.Fetch, Release: store.Release, Header: store.Header, Drain: drain, Threads: l.server.o.Threads, Log: log,
	})
	if err != nil {
		return nil, errors.Join(err, closed(monitor))
	}
	capacity := int64(0)
	for _, d := range devices {
		capacity += d.Capacity
	}
	log.Info("worker started", "pool", p.Name, "devices", len(devices), "memoryBytes", capacity)
	ctx, stop := context.WithCancel(context.Background())
	listener := fleet.Listen()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		err := server.Serve(ctx, listener, w, server.Options{
			Token:    func() (string, error) { return fleet.PoolToken(l.key, pool), nil },
			Registry: l.metrics.worker(name), Log: log,
		}, endWithin)
		switch {
		case err == nil:
		case ctx.Err() != nil: // it was to end
			log.Warn("worker ended", "error", err)
		default:
			log.Error("worker ended", "error", err)
			l.brokeWith(err)
		}
	}()
	return &host{listener: listener, stop: func() { stop(); <-ended; l.metrics.forget(name) }}, nil
}

// brokeWith an error, a worker has ended by itself.
func (l *loop) brokeWith(err error) {
	select {
	case l.broke <- err:
	default: // the process ends already
	}
}

// devices of a worker, and who watches them: nobody, if that is nil. Each worker has the
// emulated ones to itself.
func (l *loop) devices(claim device.Options, held device.Held, log *slog.Logger) ([]device.Device, device.Monitor, error) {
	if l.server.o.ownMemory() {
		claim.Memory = l.server.asked // of each device
	}
	file := l.server.o.Emulate
	if file == "" {
		return named.Claim(l.server.o.Device, claim, held, log)
	}
	m, err := device.Emulated(file, held, log)
	if err != nil {
		return nil, nil, err
	}
	all, err := device.Claim(m, "cuda", 0, claim)
	if err != nil {
		return nil, nil, errors.Join(err, m.Close())
	}
	return all, m, nil
}

// closed lets go of a monitor that no worker has.
func closed(m device.Monitor) error {
	if m == nil {
		return nil
	}
	return m.Close()
}

// store keeps the sources of a pool's models.
func (l *loop) store(p v1alpha1.InferencePool) (*source.Store, error) {
	dir := l.server.o.CacheDir
	if dir == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return nil, fmt.Errorf("find a folder for fetched models: %w; name one with --cache-dir", err)
		}
		dir = filepath.Join(user, "estiba")
	}
	size := int64(0) // the store's own default
	if p.Spec.Cache.Size != nil {
		size = p.Spec.Cache.Size.Value()
	}
	return &source.Store{
		Roots: p.Spec.ModelRoots, AllowAll: len(p.Spec.ModelRoots) == 0,
		CacheDir: filepath.Join(dir, p.Namespace+"-"+p.Name), CacheSize: size,
	}, nil
}
