package gateway

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/internal/fleet"
)

// compare turns TestCompare on: hack/bench-gateway.sh.
var compare = flag.Int("compare", 0, "rounds of a comparison with httputil.ReverseProxy, printed as a table")

// route is one way to the same fake workers.
type route struct{ name, url string }

// routes starts two fake workers on loopback, and the ways to them: straight to
// one of them, through Go's own reverse proxy, and through a gateway. The two
// proxies use the same kind of transport.
func routes(tb testing.TB) []route {
	answer := []byte(`{"object":"chat.completion","choices":[{"message":{"content":"` + strings.Repeat("x", 400) + `"}}]}`)
	var targets []fleet.Target
	for i := range 2 {
		name := fmt.Sprintf("w%d", i)
		line, err := json.Marshal(worker.State{Worker: name, Homes: []worker.HomeState{{Model: "ns/m", Phase: worker.PhaseResident}}})
		if err != nil {
			tb.Fatal(err)
		}
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			for watch := r.URL.Path == worker.PathState; watch; {
				w.Write(append(line, '\n'))
				http.NewResponseController(w).Flush()
				select {
				case <-r.Context().Done():
					return
				case <-time.After(time.Second):
				}
			}
			io.Copy(io.Discard, r.Body)
			w.Header().Set("Content-Type", "application/json")
			w.Write(answer)
		}))
		tb.Cleanup(server.Close)
		targets = append(targets, fleet.Target{Worker: name, URL: server.URL})
	}
	to, err := url.Parse(targets[0].URL)
	if err != nil {
		tb.Fatal(err)
	}
	plain := httputil.NewSingleHostReverseProxy(to)
	plain.Transport = fleet.NewClient(nil).Transport
	proxy := httptest.NewServer(plain)
	tb.Cleanup(proxy.Close)

	workers := fleet.New(fleet.NewClient(nil), fleet.Options{})
	tb.Cleanup(func() { workers.Sync(nil) })
	g := New(workers, Options{})
	tb.Cleanup(g.Close)
	workers.Sync(targets)
	g.SetModels([]Model{m})
	gateway := httptest.NewServer(g)
	tb.Cleanup(gateway.Close)
	return []route{{"direct", targets[0].URL}, {"ReverseProxy", proxy.URL}, {"gateway", gateway.URL}}
}

func requestBody(size int) []byte {
	body := []byte(`{"messages":[{"role":"user","content":""}],"model":"m"}`)
	at := bytes.Index(body, []byte(`"}]`))
	return slices.Insert(body, at, bytes.Repeat([]byte("All work. "), max(size-len(body), 0)/10)...)
}

// client sends requests over as many connections as it needs.
func client(tb testing.TB) *http.Client {
	t := &http.Transport{MaxIdleConnsPerHost: 256, WriteBufferSize: 64 << 10}
	tb.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t}
}

func once(c *http.Client, url string, body []byte) error {
	res, err := c.Post(url+"/v1/chat/completions", "application/json", bytes.NewReader(body))
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, res.Body); err != nil {
		return err
	}
	if res.StatusCode != 200 {
		return fmt.Errorf("status %s", res.Status)
	}
	return nil
}

// BenchmarkGateway is one request after another on each processor, for profiles.
func BenchmarkGateway(b *testing.B) {
	ways := routes(b)
	for _, size := range []int{1 << 10, 220 << 10} {
		body := requestBody(size)
		for _, way := range ways {
			b.Run(fmt.Sprintf("%dKiB/%s", size>>10, way.name), func(b *testing.B) {
				c := client(b)
				b.ReportAllocs()
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						if err := once(c, way.url, body); err != nil {
							b.Error(err)
						}
					}
				})
			})
		}
	}
}

// paced sends rate requests a second for d over each of the ways, by turns and
// whether or not earlier ones have ended. It returns how long each took, sorted.
func paced(t *testing.T, c *http.Client, ways []route, body []byte, rate int, d time.Duration) [][]time.Duration {
	var mu sync.Mutex
	took := make([][]time.Duration, len(ways))
	var wg sync.WaitGroup
	tick := time.NewTicker(time.Second / time.Duration(rate*len(ways)))
	defer tick.Stop()
	for n := range int(d.Seconds()*float64(rate)) * len(ways) {
		<-tick.C
		wg.Go(func() {
			way := n % len(ways)
			start := time.Now()
			if err := once(c, ways[way].url, body); err != nil {
				t.Error(err)
			}
			mu.Lock()
			took[way] = append(took[way], time.Since(start))
			mu.Unlock()
		})
	}
	wg.Wait()
	for _, times := range took {
		slices.Sort(times)
	}
	return took
}

// flatOut keeps so many requests in flight for d, and returns how many ended per second.
func flatOut(t *testing.T, c *http.Client, url string, body []byte, parallel int, d time.Duration) float64 {
	var n atomic.Int64
	var wg sync.WaitGroup
	start := time.Now()
	for range parallel {
		wg.Go(func() {
			for time.Since(start) < d {
				if err := once(c, url, body); err != nil {
					t.Error(err)
					return
				}
				n.Add(1)
			}
		})
	}
	wg.Wait()
	return float64(n.Load()) / time.Since(start).Seconds()
}

// figures are one way's measurements, a value for each round.
type figures struct{ p50, p99, rate []float64 }

// TestCompare prints, for bodies of 1 KiB and 220 KiB, what the gateway adds to a
// direct request and how many requests it passes, beside httputil.ReverseProxy.
// Each round has all ways, and latencies are taken by turns, so that a busy
// machine is busy for all.
func TestCompare(t *testing.T) {
	if *compare == 0 {
		t.Skip("a benchmark: hack/bench-gateway.sh")
	}
	const (
		rate     = 100 // requests a second, over each way, where latency is measured
		parallel = 32  // requests in flight where throughput is measured
	)
	ways := routes(t)
	c := client(t)
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(table, "body\tway\tp50 ms\tp99 ms\tadded p50\tadded p99\treq/s\tof ReverseProxy's\n")
	for _, size := range []int{1 << 10, 220 << 10} {
		body := requestBody(size)
		all := make([]figures, len(ways))
		for round := range *compare + 1 {
			times := paced(t, c, ways, body, rate, 2*time.Second)
			for i, way := range ways {
				speed := flatOut(t, c, way.url, body, parallel, 500*time.Millisecond)
				if round == 0 {
					continue // connections and buffers are new
				}
				took, f := times[i], &all[i]
				f.p50 = append(f.p50, took[len(took)/2].Seconds()*1e3)
				f.p99 = append(f.p99, took[len(took)*99/100].Seconds()*1e3)
				f.rate = append(f.rate, speed)
			}
		}
		for i, way := range ways {
			f := all[i]
			fmt.Fprintf(table, "%d KiB\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", size>>10, way.name,
				spread("%.2f", f.p50), spread("%.2f", f.p99),
				spread("%+.2f", pairs(f.p50, all[0].p50, minus)), spread("%+.2f", pairs(f.p99, all[0].p99, minus)),
				spread("%.0f", f.rate), spread("%.2f", pairs(f.rate, all[1].rate, over)))
		}
	}
	table.Flush()
	fmt.Printf("median (least..most) of %d interleaved rounds; latency at %d requests/s each, by turns; throughput with %d in flight; client, proxies and workers in one process on %d processors\n",
		*compare, rate, parallel, runtime.GOMAXPROCS(0))
}

func minus(a, b float64) float64 { return a - b }
func over(a, b float64) float64  { return a / b }

// pairs combines the values of the same round.
func pairs(a, b []float64, f func(a, b float64) float64) []float64 {
	c := make([]float64, len(a))
	for i := range a {
		c[i] = f(a[i], b[i])
	}
	return c
}

// spread writes the median and the extremes.
func spread(format string, values []float64) string {
	v := slices.Sorted(slices.Values(values))
	return fmt.Sprintf(format+" ("+format+".."+format+")", v[len(v)/2], v[0], v[len(v)-1])
}
