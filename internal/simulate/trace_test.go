package simulate

import (
	"bytes"
	"compress/gzip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/estiba/estiba/internal/fixture"
)

const (
	nodesHead = "sn,cpu_milli,memory_mib,gpu,model\n"
	podsHead  = "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec\n"
)

func TestRead(t *testing.T) {
	for name, c := range map[string]struct{ nodes, pods, want string }{
		"empty":           {"", "", "it is empty; its first line should name the columns, sn,cpu_milli,memory_mib,gpu,model"},
		"no column":       {"sn,cpu_milli\nn,1\n", "", "line 1 has no column memory_mib; needed are sn,cpu_milli,memory_mib,gpu,model"},
		"not a number":    {nodesHead + "a,1,1,8,T4\nb,many,1,8,T4\n", "", `line 3, cpu_milli: it is "many"; give a whole number of 0 to 2147483647`},
		"negative":        {nodesHead + "a,1,-1,8,T4\n", "", `line 2, memory_mib: it is "-1"`},
		"too many GPUs":   {nodesHead + "a,1,1,9999,T4\n", "", `line 2, gpu: it is "9999"; give a whole number of 0 to 1024`},
		"only a head":     {nodesHead, "", "it has no nodes, but for the names of its columns"},
		"only pods' head": {"", podsHead, "it has no pods"},
		"column twice":    {"sn,cpu_milli,memory_mib,gpu,model,gpu\na,1,1,1,T4,2\n", "", "line 1 has the column gpu twice"},
		"no GPU":          {nodesHead + "a,1,1,0,\n", "", "none of 1 nodes has a GPU"},
		"twice":           {nodesHead + "a,1,1,1,T4\na,1,1,1,T4\n", "", `line 3: "a" is there twice`},
		"no name":         {nodesHead + ",1,1,1,T4\n", "", "line 2, sn: it is empty; give a name"},
		"short row":       {nodesHead + "a,1,1,1\n", "", "record on line 2: wrong number of fields"},
		"quote":           {nodesHead + "\"a,1,1,1,T4\n", "", "line 2"},
		"share too large": {"", podsHead + "p,1,1,1,1001,\n", `line 2, gpu_milli: it is "1001"; give a whole number of 0 to 1000`},
		"no share":        {"", podsHead + "p,1,1,1,0,\n", "line 2, gpu_milli: a pod with a GPU needs at least 1 of its 1000 parts"},
		"shares of two":   {"", podsHead + "p,1,1,2,500,\n", "line 2, gpu_milli: 2 GPUs of 500: more than one GPU must be whole, which is 1000"},
		"no demand":       {"", podsHead + "p,1,1,0,0,\n", "none of 1 pods asks for a GPU"},
		"pod twice":       {"", podsHead + "p,1,1,1,10,\np,1,1,1,10,\n", `line 3: "p" is there twice`},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "t.csv")
			fixture.WriteFile(t, path, []byte(c.nodes+c.pods))
			_, err := ReadNodes(t.Context(), path)
			if c.pods != "" {
				_, err = ReadPods(t.Context(), path)
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "t.csv") {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

func TestReadPacked(t *testing.T) {
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	z.Write([]byte("\ufeff" + "qos,name,cpu_milli,memory_mib,num_gpu,gpu_milli\nLS,b,1,2,1,500\nLS,a,3,4,0,0\n"))
	z.Close()
	path := filepath.Join(t.TempDir(), "pods.csv.gz")
	fixture.WriteFile(t, path, packed.Bytes())
	got, err := ReadPods(t.Context(), path)
	want := []Pod{{Name: "a", CPU: 3, Memory: 4}, {Name: "b", CPU: 1, Memory: 2, GPUs: 1, Milli: 500}}
	if err != nil || !cmp.Equal(got, want) {
		t.Errorf("%v %v, want %v", got, err, want)
	}
	fixture.WriteFile(t, path, packed.Bytes()[:packed.Len()-9])
	if _, err := ReadPods(t.Context(), path); err == nil || !strings.Contains(err.Error(), "its end is missing: fetch it again") {
		t.Errorf("a torn file: %v", err)
	}
}

func TestReadInstances(t *testing.T) {
	const head = "instance_sn,role,cpu_request,gpu_request,memory_request,creation_time,deletion_time\n"
	path := filepath.Join(t.TempDir(), "t.csv")
	for text, want := range map[string]string{
		head + "i,HN,12,1,120.5,,\nj,CN,64,0,320.0,5.5,7\nk,HN,8,1,40,5.5,7\n": "",
		head + "i,HN,12,1,120.5,9,7\n":                                         "line 2, deletion_time: it is before the creation at 9",
		head + "i,HN,12,1,lots,9,10\n":                                         `line 2, memory_request: it is "lots"; give a number of 0 to 1e+06`,
		head + "i,HN,12,1,NaN,9,10\n":                                          `line 2, memory_request: it is "NaN"`,
		head + "i,HN,12,1.5,1,9,10\n":                                          `line 2, gpu_request: it is "1.5"; give a whole number`,
		head + "j,CN,64,0,320.0,5.5,7\n":                                       "nothing in it asks for a GPU",
		"creation_time,deletion_time\n":                                        "line 1 has no column name",
		"name,creation_time\n":                                                 "line 1 has no column deletion_time",
		"instance_sn,cpu_request,creation_time,deletion_time\n":                "line 1 has no column memory_request",
	} {
		fixture.WriteFile(t, path, []byte(text))
		got, err := ReadInstances(t.Context(), path)
		switch {
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%q: %v, want %q", text, err, want)
		case want == "" && (err != nil || len(got) != 2 || got[0].CPU != 12000 || got[0].Memory != 123392 || got[1].Start != 5.5 || got[1].End != 7):
			t.Errorf("%q: %v %v", text, got, err)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(nodesHead + "a,64000,262144,8,T4\n"))
	f.Add([]byte(podsHead + "p,1,1,1,500,T4|G2\n"))
	f.Add([]byte("instance_sn,role,cpu_request,gpu_request,memory_request,creation_time,deletion_time\ni,HN,12,1,120.5,,\n"))
	f.Add([]byte{0x1f, 0x8b, 8, 0})
	path := filepath.Join(f.TempDir(), "fuzz.csv")
	f.Fuzz(func(t *testing.T, text []byte) {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		if nodes, err := ReadNodes(t.Context(), path); err == nil && gpus(nodes) > mostGPUs {
			t.Errorf("%d GPUs", gpus(nodes))
		}
		ReadPods(t.Context(), path)
		ReadInstances(t.Context(), path)
	})
}
