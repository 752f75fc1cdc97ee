package worker

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	api "github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/runtime/backend"
	"github.com/estiba/estiba/runtime/device"
	"github.com/estiba/estiba/runtime/engine"
)

// firstToken asks a model for one: the error of its step.
func firstToken(t *testing.T, w *Worker, name string) (err error) {
	t.Helper()
	l, release, err := w.Use(t.Context(), "ns/"+name)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	events, err := l.Engine.Submit(t.Context(), engine.Request{Replica: l.Replica, Prompt: []int32{0}, MaxTokens: 1})
	if err != nil {
		t.Fatal(err)
	}
	for e := range events {
		err = errors.Join(err, e.Err)
	}
	return err
}

// TestStepLosesDevice: a device that a step finds lost takes nothing any more, whoever watches it, and no model is
// to blame for that.
func TestStepLosesDevice(t *testing.T) {
	for _, at := range []string{"step", "load"} {
		t.Run(at, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := newWorld(t)
				w, end := o.worker(t, nil)
				defer end()
				a, b := o.home("a", mib), o.home("b", mib)
				assign(t, w, a)
				after(t, w, time.Second, "a:Resident")
				lost := &backend.DeviceError{Device: "cpu-0", Lost: true, Err: errors.New("no answer")}
				found := time.Now()
				switch at {
				case "step":
					o.mu.Lock()
					o.stepErr["/m/a"] = lost
					o.mu.Unlock()
					if err := firstToken(t, w, "a"); !errors.Is(err, engine.ErrBroken) || Blamed(err) != api.ReasonDeviceLost {
						t.Error(err)
					}
					after(t, w, 0, "a:Failed(DeviceLost)")
				case "load":
					w.mu.Lock()
					w.deviceFailed(lost, "")
					w.mu.Unlock()
					if err := classify(lost); reasonOf(err) != api.ReasonDeviceLost || !strings.Contains(err.Error(), "another home") {
						t.Error(err)
					}
				}
				assign(t, w, a, b)
				after(t, w, 2*time.Second, "a:Refused(DeviceLost) b:Refused(DeviceLost)")
				s := w.State()
				if d := s.Devices[0]; !d.Lost() || d.Health.Reason != "Gone" || d.Health.Since.Sub(found) > time.Second || d.UsedBytes != 0 {
					t.Errorf("%+v", d)
				}
				if got := s.Homes[1].Message; got != "Device cpu-0 is lost: no answer; look for XIDs in the kernel's log, and reset the device or replace it." {
					t.Error(got)
				}
			})
		})
	}
}

// TestStepEndsProcess: where only another process can use the device, the worker ends, and the journal says whose step it was.
// It never says that it drains, or its pod would be deleted, and the journal with it.
func TestStepEndsProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newWorld(t)
		options := Options{
			Name: "w0", Pool: "default/cpu", Devices: []device.Device{{Name: "cpu-0", Kind: "cpu", Extent: 64 << 10, Capacity: o.capacity}},
			Fetch: o.fetch, Release: o.release, Log: slog.New(slog.DiscardHandler), Journal: filepath.Join(t.TempDir(), "journal"),
		}
		w, err := New(options)
		if err != nil {
			t.Fatal(err)
		}
		w.inspect, w.load = o.inspect, o.load
		ended := make(chan error, 1)
		go func() { ended <- w.Run(context.Background()) }()
		assign(t, w, o.home("a", mib), o.home("b", mib))
		after(t, w, time.Second, "a:Resident b:Resident")
		drains := make(chan bool)
		states, enough := context.WithCancel(t.Context())
		go func() {
			is := false
			for s := range w.Watch(states) {
				is = is || s.Draining
			}
			drains <- is
		}()
		o.mu.Lock()
		o.stepErr["/m/a"] = &backend.DeviceError{Device: "cpu-0", Err: errors.New("illegal address")}
		o.mu.Unlock()
		if err := firstToken(t, w, "a"); Blamed(err) != api.ReasonDeviceLost {
			t.Error(err)
		}
		if err := <-ended; err == nil || !strings.Contains(err.Error(), "illegal address") {
			t.Errorf("the worker ended with %v", err)
		}
		if _, _, err := w.Use(t.Context(), "ns/b"); !errors.Is(err, ErrLacks) {
			t.Errorf("it takes another request: %v", err)
		}
		time.Sleep(time.Second) // until it has said all
		enough()
		if <-drains {
			t.Error("it said that it drains")
		}
		next, err := New(options)
		if err != nil {
			t.Fatal(err)
		}
		p := next.State().Previous
		if p == nil || len(p.AtWork) != 1 || p.AtWork[0].Model != "ns/a" {
			t.Errorf("%+v", p)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := next.Run(ctx); err != nil {
			t.Error(err)
		}
	})
}
