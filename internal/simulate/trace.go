package simulate

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/estiba/estiba/internal/file"
)

// Bounds of what is read. The largest published trace has 9,420 pods on 1,213 nodes.
const (
	mostBytes = 256 << 20 // of a file, and of what it unpacks to
	mostRows  = 1_000_000
	mostGPUs  = 1_000_000 // of all nodes
	mostEach  = 1024      // GPUs of a node
)

// Node is a machine. CPU is in 1/1000 of a core, Memory in MiB.
type Node struct {
	Name        string
	CPU, Memory int64
	GPUs        int
	Kind        string // of its GPUs
}

// Pod asks for no GPU, for a share of one (GPUs 1, Milli below 1000), or for whole ones.
type Pod struct {
	Name        string
	CPU, Memory int64 // 1/1000 of a core, MiB
	GPUs        int
	Milli       int64  // of each GPU, in 1/1000
	Kinds       string // of GPUs that will do, separated by |; empty: any
}

// Whole is the number of whole GPUs that a pod needs.
func (p Pod) Whole() int {
	if p.Milli == 1000 {
		return p.GPUs
	}
	return 0
}

// Demand of GPUs in 1/1000.
func (p Pod) Demand() int64 { return int64(p.GPUs) * p.Milli }

// ReadNodes reads a CSV file, maybe compressed by gzip, with the columns sn, cpu_milli, memory_mib, gpu, model.
func ReadNodes(ctx context.Context, path string) ([]Node, error) {
	t, err := open(ctx, path, "sn", "cpu_milli", "memory_mib", "gpu", "model")
	if err != nil {
		return nil, err
	}
	var nodes []Node
	seen, gpus := map[string]bool{}, 0
	for t.next() {
		n := Node{
			Name: t.name(0), CPU: t.whole(1, math.MaxInt32), Memory: t.whole(2, math.MaxInt32), GPUs: int(t.whole(3, mostEach)), Kind: t.text(4),
		}
		if gpus += n.GPUs; gpus > mostGPUs {
			t.fail(3, fmt.Sprintf("there are more than %d GPUs", mostGPUs))
		}
		if seen[n.Name] {
			t.twice(n.Name)
		}
		seen[n.Name] = true
		nodes = append(nodes, n)
	}
	t.nothing("nodes")
	if t.err == nil && gpus == 0 {
		t.err = fmt.Errorf("read %s: none of %d nodes has a GPU", path, len(nodes))
	}
	return nodes, t.err
}

// ReadPods reads a CSV file, maybe compressed by gzip, with the columns name, cpu_milli, memory_mib, num_gpu, gpu_milli
// and, if it likes, gpu_spec. They come sorted by name.
func ReadPods(ctx context.Context, path string) ([]Pod, error) {
	t, err := open(ctx, path, "name", "cpu_milli", "memory_mib", "num_gpu", "gpu_milli", "gpu_spec?")
	if err != nil {
		return nil, err
	}
	var pods []Pod
	seen, demand := map[string]bool{}, int64(0)
	for t.next() {
		p := t.pod()
		if seen[p.Name] {
			t.twice(p.Name)
		}
		seen[p.Name], demand = true, demand+p.Demand()
		pods = append(pods, p)
	}
	t.nothing("pods")
	if t.err == nil && demand == 0 {
		t.err = fmt.Errorf("read %s: none of %d pods asks for a GPU", path, len(pods))
	}
	slices.SortFunc(pods, func(a, b Pod) int { return cmp.Compare(a.Name, b.Name) })
	return pods, t.err
}

// pod reads a row whose first columns are those of ReadPods.
func (t *table) pod() Pod {
	p := Pod{
		Name: t.name(0), CPU: t.whole(1, math.MaxInt32), Memory: t.whole(2, math.MaxInt32), GPUs: int(t.whole(3, mostEach)), Milli: t.whole(4, 1000), Kinds: t.text(5),
	}
	switch {
	case p.GPUs == 0:
		p.Milli, p.Kinds = 0, ""
	case p.Milli == 0:
		t.fail(4, "a pod with a GPU needs at least 1 of its 1000 parts")
	case p.GPUs > 1 && p.Milli < 1000:
		t.fail(4, fmt.Sprintf("%d GPUs of %d: more than one GPU must be whole, which is 1000", p.GPUs, p.Milli))
	}
	return p
}

// table is a CSV file whose columns are found by name. The first error stays.
type table struct {
	path    string
	r       *csv.Reader
	columns []string
	at      []int // of each column in a row; -1: missing
	row     []string
	rows    int
	err     error
}

// open reads a file whole, unpacks it, and finds the columns in its first line. One with a question mark may be missing.
func open(ctx context.Context, path string, columns ...string) (*table, error) {
	text, err := file.Read(ctx, path, mostBytes)
	if errors.Is(err, syscall.EISDIR) {
		return nil, fmt.Errorf("read %s: it is a folder: give the CSV file in it", path)
	}
	if err != nil {
		return nil, err
	}
	if bytes.HasPrefix(text, []byte{0x1f, 0x8b}) {
		if text, err = unpack(text); err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
	}
	return parse(path, text, columns...)
}

func unpack(packed []byte) ([]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(packed))
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, errors.New("its end is missing: fetch it again")
	}
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(z, mostBytes+1))
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, errors.New("its end is missing: fetch it again")
	}
	if err == nil && len(text) > mostBytes {
		err = fmt.Errorf("it unpacks to more than %d MiB, which are the most that are read", mostBytes>>20)
	}
	return text, err
}

func parse(path string, text []byte, columns ...string) (*table, error) {
	t := &table{path: path, r: csv.NewReader(bytes.NewReader(bytes.TrimPrefix(text, []byte("\ufeff"))))}
	t.r.ReuseRecord = true
	first, err := t.r.Read()
	if errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read %s: it is empty; its first line should name the columns, %s", path, strings.ReplaceAll(strings.Join(columns, ","), "?", ""))
	} else if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	for _, c := range columns {
		c, optional := strings.CutSuffix(c, "?")
		t.columns = append(t.columns, c)
		i := slices.Index(first, c)
		if i < 0 && !optional {
			needed := slices.DeleteFunc(slices.Clone(columns), func(c string) bool { return strings.HasSuffix(c, "?") })
			return nil, fmt.Errorf("read %s: line 1 has no column %s; needed are %s", path, c, strings.Join(needed, ","))
		}
		if i >= 0 && slices.Contains(first[i+1:], c) {
			return nil, fmt.Errorf("read %s: line 1 has the column %s twice: leave one of them", path, c)
		}
		t.at = append(t.at, i)
	}
	return t, nil
}

func (t *table) next() bool {
	if t.err != nil {
		return false
	}
	row, err := t.r.Read()
	switch {
	case errors.Is(err, io.EOF):
		return false
	case err != nil:
		t.err = fmt.Errorf("read %s: %w", t.path, err)
		return false
	case t.rows == mostRows:
		t.err = fmt.Errorf("read %s: it has more than %d rows, which are the most that are read", t.path, mostRows)
		return false
	}
	t.row, t.rows = row, t.rows+1
	return true
}

func (t *table) text(column int) string {
	if t.at[column] < 0 {
		return ""
	}
	return strings.Clone(t.row[t.at[column]])
}

func (t *table) name(column int) string {
	if t.row[t.at[column]] == "" {
		t.fail(column, "it is empty; give a name")
	}
	return t.text(column)
}

// whole is a number of 0 to most.
func (t *table) whole(column int, most int64) int64 {
	text := t.row[t.at[column]]
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 || n > most {
		t.fail(column, fmt.Sprintf("it is %.40q; give a whole number of 0 to %d", text, most))
		return 0
	}
	return n
}

// number is a finite number of 0 to most; missing where the field is empty.
func (t *table) number(column int, most, missing float64) float64 {
	text := t.row[t.at[column]]
	if text == "" {
		return missing
	}
	n, err := strconv.ParseFloat(text, 64)
	if err != nil || !(n >= 0 && n <= most) {
		t.fail(column, fmt.Sprintf("it is %.40q; give a number of 0 to %g", text, most))
		return 0
	}
	return n
}

// need reports the first of these columns that is missing.
func (t *table) need(columns ...int) error {
	for _, c := range columns {
		if t.at[c] < 0 {
			return fmt.Errorf("read %s: line 1 has no column %s", t.path, t.columns[c])
		}
	}
	return nil
}

// nothing reports a table without rows.
func (t *table) nothing(rows string) {
	if t.err == nil && t.rows == 0 {
		t.err = fmt.Errorf("read %s: it has no %s, but for the names of its columns", t.path, rows)
	}
}

func (t *table) twice(name string) {
	if t.err == nil {
		line, _ := t.r.FieldPos(0)
		t.err = fmt.Errorf("read %s: line %d: %.80q is there twice", t.path, line, name)
	}
}

func (t *table) fail(column int, why string) {
	if t.err == nil {
		line, _ := t.r.FieldPos(t.at[column])
		t.err = fmt.Errorf("read %s: line %d, %s: %s", t.path, line, t.columns[column], why)
	}
}
