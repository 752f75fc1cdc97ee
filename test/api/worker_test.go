package apitest

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/internal/fleet"
)

const mib = 1 << 20

// host plays kubelet and worker for one pod: it listens on an address of the
// loopback network, says so in the pod's status, and holds what it is told.
type host struct {
	t    *testing.T
	pod  *corev1.Pod
	pool string

	mu       sync.Mutex
	state    worker.State
	refused  []worker.Refusal
	sources  map[string]worker.Inspection // uri -> what its header says
	instance int
}

// hosts hands out addresses.
var hosts struct {
	sync.Mutex
	n int
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	hosts.Lock()
	defer hosts.Unlock()
	for range 200 {
		hosts.n++
		l, err := net.Listen("tcp", fmt.Sprintf("127.77.%d.%d:8081", hosts.n/250, 1+hosts.n%250))
		if err == nil {
			return l
		}
	}
	t.Fatal("no address of 127.77.0.0/16 is free at port 8081")
	return nil
}

// runWorker starts the worker of a pod.
func runWorker(t *testing.T, pod *corev1.Pod, sources map[string]worker.Inspection) *host {
	t.Helper()
	h := &host{t: t, pod: pod, pool: pod.Namespace + "/" + pod.Labels["estiba.dev/pool"], sources: sources}
	h.state = worker.State{Worker: pod.Name, Pool: h.pool, Devices: []worker.Device{{Name: "cpu-0", Kind: "cpu", ExtentBytes: 64 << 10, CapacityBytes: 100 * mib}}, Homes: []worker.HomeState{}}
	h.restart()
	l := listen(t)
	server := &httptest.Server{Listener: l, Config: &http.Server{Handler: h.mux()}}
	server.Start()
	t.Cleanup(func() { server.CloseClientConnections(); server.Close() })
	host, _, _ := net.SplitHostPort(l.Addr().String())
	before := pod.DeepCopy()
	now := metav1.Now()
	pod.Status.Phase, pod.Status.PodIP, pod.Status.PodIPs, pod.Status.StartTime = corev1.PodRunning, host, []corev1.PodIP{{IP: host}}, &now
	pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "worker", Ready: true, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: now}}}}
	if err := cluster.client.Status().Patch(t.Context(), pod, client.MergeFrom(before)); err != nil {
		t.Fatal(err)
	}
	return h
}

// restart is a new process in the same pod.
func (h *host) restart() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.instance++
	h.state.Instance = fmt.Sprintf("%s.%d", h.pod.Name, h.instance)
	h.state.Epoch, h.state.Generation, h.state.Homes, h.state.Draining = 0, 0, []worker.HomeState{}, false
	h.state.Devices = slices.Clone(h.state.Devices)
	h.state.Devices[0].UsedBytes = 0
}

func (h *host) mux() *http.ServeMux {
	mux := http.NewServeMux()
	token := fleet.PoolToken([]byte(installation), h.pool)
	guarded := func(f http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") != "Bearer "+token {
				http.Error(w, "no", http.StatusUnauthorized)
				return
			}
			f(w, r)
		}
	}
	mux.HandleFunc("GET "+worker.PathState, guarded(h.report))
	mux.HandleFunc("PUT "+worker.PathAssignment, guarded(h.assign))
	mux.HandleFunc("POST "+worker.PathInspect, guarded(h.inspect))
	return mux
}

func (h *host) now() worker.State {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.state
	s.Time = time.Now()
	s.Homes, s.Devices = slices.Clone(s.Homes), slices.Clone(s.Devices)
	return s
}

func (h *host) report(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/x-ndjson")
	for {
		if err := json.NewEncoder(w).Encode(h.now()); err != nil || r.URL.Query().Get("watch") == "" {
			return
		}
		w.(http.Flusher).Flush()
		select {
		case <-r.Context().Done():
			return
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (h *host) assign(w http.ResponseWriter, r *http.Request) {
	var a worker.Assignment
	if err := json.NewDecoder(r.Body).Decode(&a); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	s := &h.state
	older := cmp.Or(cmp.Compare(a.Epoch, s.Epoch), cmp.Compare(a.Generation, s.Generation)) < 0
	if older || a.Instance != s.Instance {
		no := worker.Refusal{Reason: worker.RefusedOlder, Message: "older", Epoch: s.Epoch, Generation: s.Generation, Instance: s.Instance}
		if !older {
			no.Reason = worker.RefusedInstance
		}
		h.refused = append(h.refused, no)
		w.WriteHeader(http.StatusConflict)
		_ = json.NewEncoder(w).Encode(no)
		return
	}
	before := s.Homes
	s.Epoch, s.Generation, s.Draining, s.Homes = a.Epoch, a.Generation, a.Drain, []worker.HomeState{}
	s.Devices = slices.Clone(s.Devices)
	s.Devices[0].UsedBytes = 0
	for _, home := range a.Homes {
		is := worker.HomeState{Model: home.Model, Revision: home.Revision, Devices: home.Devices, Phase: worker.PhaseIdle, Tier: worker.TierDisk,
			Footprint: h.sources[home.Source.URI].Footprint, WantResident: home.Resident}
		if i := slices.IndexFunc(before, func(o worker.HomeState) bool { return o.Model == home.Model }); i >= 0 {
			is.ResidentSeconds, is.Completed = before[i].ResidentSeconds+1, before[i].Completed
		}
		if home.Resident {
			is.Phase, is.Tier = worker.PhaseResident, worker.TierDevice
			s.Devices[0].UsedBytes += is.Footprint.Total()
		}
		s.Homes = append(s.Homes, is)
	}
	_ = json.NewEncoder(w).Encode(*s)
}

func (h *host) inspect(w http.ResponseWriter, r *http.Request) {
	var in worker.InspectRequest
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	out, ok := h.sources[in.Source.URI]
	if !ok {
		out.Error = &worker.InspectError{Reason: worker.ReasonSourceUnavailable, Message: in.Source.URI + ": no such file."}
	}
	_ = json.NewEncoder(w).Encode(out)
}

// holds are the models that the worker is told to hold.
func (h *host) holds() []string {
	var names []string
	for _, home := range h.now().Homes {
		names = append(names, home.Model)
	}
	return names
}
