package apitest

import (
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/internal/fleet"
	"github.com/estiba/estiba/internal/simworker"
	"github.com/estiba/estiba/test/apiserver"
)

const mib = 1 << 20

// shelf has what the headers of sources say.
type shelf struct {
	mu sync.Mutex
	of map[string]worker.Inspection // uri -> ...
}

func (s *shelf) put(uri string, in worker.Inspection) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.of[uri] = in
}

func (s *shelf) read(r worker.InspectRequest) worker.Inspection {
	s.mu.Lock()
	defer s.mu.Unlock()
	in, ok := s.of[r.Source.URI]
	if !ok {
		in.Error = &worker.InspectError{Reason: worker.ReasonSourceUnavailable, Message: r.Source.URI + ": no such file."}
	}
	return in
}

// runWorker plays kubelet and worker for one pod.
func runWorker(t *testing.T, pod *corev1.Pod, sources map[string]worker.Inspection) (*simworker.Worker, *shelf) {
	t.Helper()
	s := &shelf{of: sources}
	f := simworker.New(simworker.Options{
		Token:   func(pool string) string { return fleet.PoolToken([]byte(apiserver.Key), pool) },
		Inspect: s.read,
		Device:  worker.Device{Name: "cpu-0", Kind: "cpu", ExtentBytes: 64 << 10, CapacityBytes: 100 * mib},
	})
	t.Cleanup(f.Close)
	w, err := f.Start(pod.Name, pod.Namespace+"/"+pod.Labels[v1alpha1.LabelPool])
	if err == nil {
		err = cluster.Run(t.Context(), pod, w.Address())
	}
	if err != nil {
		t.Fatal(err)
	}
	return w, s
}

// holds are the models that the worker is told to hold.
func holds(w *simworker.Worker) []string {
	var names []string
	for _, home := range w.State().Homes {
		names = append(names, home.Model)
	}
	return names
}
