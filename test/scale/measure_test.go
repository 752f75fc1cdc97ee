package scaletest

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// operator is an operator's process, as it is measured.
type operator struct {
	t   *testing.T
	pid int
	url string // of its metrics
}

// series are metrics: name{labels} -> value.
type series map[string]float64

func freeAddress(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func (o *operator) get(ctx context.Context) (series, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, o.url, nil)
	if err != nil {
		return nil, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	return parse(res.Body)
}

// parse reads the text format of metrics.
func parse(r io.Reader) (series, error) {
	s := series{}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		line := lines.Text()
		at := strings.LastIndexByte(line, ' ')
		if at < 0 || line[0] == '#' {
			continue
		}
		v, err := strconv.ParseFloat(line[at+1:], 64)
		if err != nil {
			return nil, fmt.Errorf("read metrics: %q: %w", line, err)
		}
		s[line[:at]] = v
	}
	return s, lines.Err()
}

func (o *operator) scrape() series {
	s, err := o.get(o.t.Context())
	if err != nil {
		o.t.Fatalf("the operator has ended: %v", err)
	}
	return s
}

// sum of all series of a name whose labels contain all of some.
func (s series) sum(name string, labels ...string) (total float64) {
next:
	for key, v := range s {
		if rest, ok := strings.CutPrefix(key, name); !ok || rest != "" && rest[0] != '{' {
			continue
		}
		for _, l := range labels {
			if !strings.Contains(key, l) {
				continue next
			}
		}
		total += v
	}
	return total
}

// sample is what processes have taken so far.
type sample struct {
	at     time.Time
	series series
	cpu    map[string]float64 // process -> seconds
}

func (w *world) sample(o *operator) sample {
	s := sample{at: time.Now(), series: o.scrape(), cpu: map[string]float64{}}
	s.cpu["operator"] = cpu(o.pid)
	s.cpu["generator"] = cpu(os.Getpid())
	for _, pid := range children(os.Getpid()) {
		name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		s.cpu[strings.TrimSpace(string(name))] += cpu(pid)
	}
	return s
}

// cpu seconds of a process, 0 if that is not known here.
func cpu(pid int) float64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	const user, system, perSecond = 11, 12, 100 // USER_HZ
	u, _ := strconv.ParseFloat(fields[user], 64)
	s, _ := strconv.ParseFloat(fields[system], 64)
	return (u + s) / perSecond
}

func children(pid int) (pids []int) {
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, list := range lists {
		text, _ := os.ReadFile(list)
		for _, f := range strings.Fields(string(text)) {
			if n, err := strconv.Atoi(f); err == nil {
				pids = append(pids, n)
			}
		}
	}
	return pids
}

// phase is what was taken between two samples.
func (w *world) phase(a, b sample) Phase {
	seconds := b.at.Sub(a.at).Seconds()
	took := func(name string, labels ...string) float64 {
		return b.series.sum(name, labels...) - a.series.sum(name, labels...)
	}
	cores := func(name string) float64 { return (b.cpu[name] - a.cpu[name]) / seconds }
	const mib = 1 << 20
	p := Phase{
		Seconds: seconds, OperatorCPU: cores("operator"), APIServerCPU: cores("kube-apiserver"), EtcdCPU: cores("etcd"), GeneratorCPU: cores("generator"),
		LiveMiB: b.series["go_gc_heap_live_bytes"] / mib, ResidentMiB: b.series["process_resident_memory_bytes"] / mib,
		Requests:     map[string]float64{},
		Decisions:    took("estiba_operator_decision_seconds_count"),
		StatusWrites: took("estiba_operator_status_writes_total") / seconds,
		Assignments:  took("estiba_operator_assignments_total") / seconds,
	}
	for _, verb := range []string{"GET", "POST", "PATCH", "PUT", "DELETE"} {
		p.Requests[verb] = took("rest_client_requests_total", `method="`+verb+`"`) / seconds
	}
	if p.Decisions > 0 {
		p.DecisionSeconds = took("estiba_operator_decision_seconds_sum") / p.Decisions
		p.RoundSeconds = took("controller_runtime_reconcile_time_seconds_sum") / p.Decisions
	}
	return p
}
