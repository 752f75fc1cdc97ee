package simulate

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"slices"
	"testing"
	"time"

	"github.com/estiba/estiba/internal/fixture"
)

// request of a trace: at and takes are in seconds.
type request struct {
	model     string
	at, takes float64
}

// readRequests reads Alibaba's GenTD26: 26,823 requests for 87 models of image generation in 23 days, in the order of their coming.
func readRequests(t *testing.T) []request {
	t.Helper()
	table, err := open(t.Context(), fixture.Shared(t, "data/traces/alibaba-gentd26-requests.csv.gz"), "gmt_create", "exec_time_seconds", "checkpoint_model_version_id")
	if err != nil {
		t.Fatal(err)
	}
	var all []request
	for table.next() {
		at, err := time.Parse(time.DateTime, table.text(0))
		if err != nil {
			t.Fatal(err)
		}
		if model := table.text(2); model != "" {
			all = append(all, request{model, float64(at.Unix()), table.number(1, 1e6, 0)})
		}
	}
	if table.err != nil {
		t.Fatal(table.err)
	}
	slices.SortStableFunc(all, func(a, b request) int { return cmp.Compare(a.at, b.at) })
	return all
}

// imageModels are the models of the requests, in the order of their first one. The trace has no sizes: by their names they get those of
// Stable Diffusion 1.5 (4 GiB), XL (10 GiB) or Flux in 8 bits (16 GiB), six, three and one of ten.
func imageModels(requests []request) []llm {
	busy, first := map[string]float64{}, map[string]int{}
	for i, r := range requests {
		if _, seen := first[r.model]; !seen {
			first[r.model] = i
		}
		busy[r.model] += r.takes
	}
	span := requests[len(requests)-1].at - requests[0].at
	var models []llm
	for name := range first {
		h := fnv.New32a()
		h.Write([]byte(name))
		size := int64(400)
		switch n := h.Sum32() % 10; {
		case n == 9:
			size = 1600
		case n >= 6:
			size = 1000
		}
		models = append(models, llm{name: name, gib: size, awake: int(1000 * busy[name] / span)})
	}
	slices.SortFunc(models, func(a, b llm) int { return cmp.Compare(first[a.name], first[b.name]) })
	return models
}

// TestGenTD26: on three devices of 24 GiB, homes that sleep share what would hold a tenth of them; requests find their models awake, or room
// in which they wake.
func TestGenTD26(t *testing.T) {
	requests := readRequests(t)
	models := imageModels(requests)
	shared, alone := playRequests(t, requests, models, true), playRequests(t, requests, models, false)
	t.Logf("%d requests for %d models on 3 devices of 24 GiB\nhomes share:     %s\neach its bytes:  %s", len(requests), len(models), shared, alone)
	if shared.ready < 0.98 || shared.homes < len(models)-5 || alone.ready > shared.ready {
		t.Errorf("homes share: %s\neach its bytes: %s", shared, alone)
	}
}

// played is what became of the requests.
type played struct {
	homes, wakes int
	ready        float64 // share of requests that found their model awake, or room to wake
	home         float64 // share that found a home
}

func (p played) String() string {
	return fmt.Sprintf("%d models at home, %.2f %% of the requests find a home, %.2f %% find it awake or room to wake at once, %d wakes", p.homes, 100*p.home, 100*p.ready, p.wakes)
}

// playRequests gives homes to the models in the order of their first request, and then looks at each request: which models run on its
// device just then, and whether its own is beside them or could be.
func playRequests(t *testing.T, requests []request, models []llm, sleep bool) (p played) {
	q := newQuay(3, 2400)
	byName := map[string]llm{}
	for _, m := range models {
		byName[m.name] = m
		if !sleep {
			m.awake = 1000
		}
		q.come(m)
	}
	q.check(t)
	p.homes = len(q.homes)
	on := map[string]map[string]*awake{} // worker -> model
	for _, r := range requests {
		h := q.homes[r.model]
		if h.Worker == "" {
			continue
		}
		p.home++
		if on[h.Worker] == nil {
			on[h.Worker] = map[string]*awake{}
		}
		device := on[h.Worker]
		if device[r.model] == nil {
			if !makeRoomAwake(device, byName, r) {
				continue
			}
			device[r.model] = &awake{}
			p.wakes++
		}
		p.ready++
		device[r.model].until = max(device[r.model].until, r.at+r.takes)
	}
	p.home /= float64(len(requests))
	p.ready /= float64(len(requests))
	return p
}

// awake model, with the end of its last request.
type awake struct{ until float64 }

// makeRoomAwake lets idle models of the device sleep, the longest idle first, until the request's has room.
func makeRoomAwake(device map[string]*awake, models map[string]llm, r request) bool {
	free := int64(2400)
	var idle []string
	for name, a := range device {
		free -= models[name].gib
		if a.until <= r.at {
			idle = append(idle, name)
		}
	}
	slices.SortFunc(idle, func(a, b string) int { return cmp.Or(cmp.Compare(device[a].until, device[b].until), cmp.Compare(a, b)) })
	for _, name := range idle {
		if free >= models[r.model].gib {
			break
		}
		free += models[name].gib
		delete(device, name)
	}
	return free >= models[r.model].gib
}
