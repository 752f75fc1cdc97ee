package cpu

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"unsafe"

	"github.com/estiba/estiba/runtime/tensor"
)

var floatFormats = []tensor.DType{tensor.F32, tensor.F16, tensor.BF16}

// anyNumbers has, beside small numbers, all that is strange where strange is set.
func anyNumbers(r *rand.Rand, n int, strange bool) []float32 {
	x := normal(r, n)
	if !strange {
		return x
	}
	list := []float32{0, float32(math.Copysign(0, -1)), 0x1p-149, -0x1p-126, 0x1p-140, 1e-20, 1e20, -3e38, math.MaxFloat32, float32(math.Inf(1)), float32(math.Inf(-1)), float32(math.NaN())}
	for range 1 + n/100 {
		x[r.IntN(n)] = list[r.IntN(len(list))]
	}
	return x
}

// numberMatrix is weights of numbers as they are in d.
func numberMatrix(r *rand.Rand, d tensor.DType, rows, cols int, strange bool) Matrix {
	w := randomMatrix(r, d, rows, cols, 1)
	if strange {
		for range 1 + rows*cols/100 { // any bits
			w.Data[r.IntN(len(w.Data))] = byte(r.Uint32())
			i := r.IntN(rows*cols) * int(d.Bytes(1))
			for j := range int(d.Bytes(1)) {
				w.Data[i+j] = byte(r.Uint32())
			}
		}
	}
	return w
}

// productShape is what a product is tried with.
type productShape struct {
	d             tensor.DType
	n, rows, cols int
	strange       bool
}

// shapes are some that kernels treat differently, and some at random.
func shapes(r *rand.Rand, formats []tensor.DType) []productShape {
	var all []productShape
	for _, d := range formats {
		block := d.Block()
		for n := 1; n <= 40; n++ {
			all = append(all, productShape{d, n, 1 + r.IntN(70), (1 + r.IntN(300/block+1)) * block, n%3 == 0})
		}
		for _, cols := range []int{1, 2, 31, 32, 33, 63, 64, 511, 512, 513, 1024, 1535, 2050} {
			all = append(all, productShape{d, 1 + r.IntN(20), 1 + r.IntN(40), (cols + block - 1) / block * block, false})
		}
		all = append(all, productShape{d, 30, 16*17 + 3, 2*512/block*block + block, false}, productShape{d, 130, 40, 96/block*block + block, true})
	}
	return all
}

// TestFloatProduct wants of every path the bits of the plain product with float32 activations: for few rows and for
// many, for rows taken in turn and for chosen ones, and nothing written beside.
func TestFloatProduct(t *testing.T) {
	r := rand.New(rand.NewPCG(21, 22))
	for _, s := range shapes(r, floatFormats) {
		m := numberMatrix(r, s.d, s.rows, s.cols, s.strange)
		x := anyNumbers(r, s.n*s.cols, s.strange)
		in := prepared(PlainGo, Float32, x, s.n, s.cols)
		want := make([]float32, s.n*s.rows)
		PlainGo.MatMul(want, s.rows, in, packed(PlainGo, m), 0, (s.rows+PanelRows-1)/PanelRows, nil)
		for _, p := range Available() {
			w := packed(p, m)
			if plain := packed(PlainGo, m); !bytes.Equal(w.Data, plain.Data) {
				t.Fatalf("%v packs %+v otherwise", p, s)
			}
			tryProduct(t, r, p.multiply, s, in, w, func(row, j int, got float32) error {
				if want := want[row*s.rows+j]; !sameNumber(got, want) {
					return fmt.Errorf("%v (%#x), want %v", got, math.Float32bits(got), want)
				}
				return nil
			})
		}
	}
}

// multiply is product, in memory of its own.
func (p Path) multiply(m *product) {
	m.scratch = aligned(p.ScratchBytes(m.w.DType, m.w.Cols, m.n))
	p.product(m)
	intact(m.scratch)
}

// intact panics where what is around aligned memory has changed.
func intact(b []byte) {
	if len(b) == 0 {
		return
	}
	around := unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(unsafe.SliceData(b)), -64)), len(b)+128)
	for i := range 64 {
		if around[i] != 0xa5 || around[64+len(b)+i] != 0xa5 {
			panic("written beside")
		}
	}
}

// tryProduct multiplies in parts, all rows and then some, and judges each number.
func tryProduct(t *testing.T, r *rand.Rand, multiply func(*product), s productShape, in Rows, w Packed, judge func(row, j int, got float32) error) {
	t.Helper()
	const canary = 12345.678
	stride := s.rows + r.IntN(3)
	n := w.Panels()
	from := r.IntN(n)
	to := from + 1 + r.IntN(n-from)
	y := make([]float32, 1+s.n*stride)
	for i := range y {
		y[i] = canary
	}
	for _, part := range [][2]int{{0, from}, {from, to}, {to, n}} {
		multiply(&product{y: y[1 : 1+(s.n-1)*stride+s.rows], stride: stride, n: s.n, x: in, w: w, from: part[0], to: part[1]})
	}
	for i, got := range y[1:] {
		row, j := i/stride, i%stride
		if j >= s.rows {
			if got != canary {
				t.Fatalf("%+v: writes beside row %d", s, row)
			}
		} else if err := judge(row, j, got); err != nil {
			t.Fatalf("%+v: element %d of row %d: %v", s, j, row, err)
		}
	}
	if y[0] != canary {
		t.Fatalf("%+v: writes before", s)
	}
	// Chosen rows, each element of y in one of them.
	rows, at := make([]int, 1+r.IntN(s.n)), []int(nil)
	for i := range rows {
		rows[i] = r.IntN(s.n)
		at = append(at, i*stride)
	}
	r.Shuffle(len(at), func(i, j int) { at[i], at[j] = at[j], at[i] })
	for i := range y {
		y[i] = canary
	}
	multiply(&product{y: y, yAt: at, rows: rows, n: len(rows), x: in, w: w, from: from, to: to})
	written := 0
	for i, row := range rows {
		for j := from * PanelRows; j < min(to*PanelRows, s.rows); j++ {
			written++
			if err := judge(row, j, y[at[i]+j]); err != nil {
				t.Fatalf("%+v: element %d of chosen row %d: %v", s, j, row, err)
			}
		}
	}
	for _, v := range y {
		if v == canary {
			written++
		}
	}
	if written != len(y) {
		t.Fatalf("%+v: chosen rows write beside", s)
	}
}

// sameNumber says whether two have the same bits, or are no numbers both.
func sameNumber(a, b float32) bool {
	return math.Float32bits(a) == math.Float32bits(b) || a != a && b != b
}

// TestBFloat16Product bounds the products of activations rounded to bfloat16.
func TestBFloat16Product(t *testing.T) {
	r := rand.New(rand.NewPCG(23, 24))
	for _, s := range shapes(r, floatFormats[1:]) {
		for _, p := range Available() {
			if p.Form(s.d, fewRows+1) == BFloat16 {
				tryBFloat16(t, r, p.multiply, s)
			}
		}
	}
}

// tryBFloat16 bounds a product by float64 sums of the rounded factors: the error of cols additions of float32, as
// factors below 2^-126 are zeros and so are sums. A row's numbers depend on no other.
func tryBFloat16(t *testing.T, r *rand.Rand, multiply func(*product), s productShape) {
	t.Helper()
	m := randomMatrix(r, s.d, s.rows, s.cols, 1)
	if s.d.Block() == 1 {
		m = numberMatrix(r, s.d, s.rows, s.cols, s.strange)
	}
	x := anyNumbers(r, s.n*s.cols, s.strange)
	weights := make([]float32, s.cols)
	want, bound := make([]float64, s.n*s.rows), make([]float64, s.n*s.rows)
	for j := range s.rows {
		m.RowRef(weights, j)
		for i := range s.n {
			sum, size, least := 0.0, 0.0, 0x1p-126
			for k, w := range weights {
				w, x := float64(BF16(toBF16(w))), float64(BF16(toBF16(x[i*s.cols+k])))
				sum += w * x
				size += math.Abs(w * x)
				least += 0x1p-126 * (math.Abs(w) + math.Abs(x) + 2)
			}
			want[i*s.rows+j], bound[i*s.rows+j] = sum, size*float64(s.cols+2)*0x1p-24+least
		}
	}
	seen := make([]float32, s.n*s.rows)
	known := make([]bool, len(seen))
	tryProduct(t, r, multiply, s, prepared(PlainGo, BFloat16, x, s.n, s.cols), packed(PlainGo, m), func(row, j int, got float32) error {
		i := row*s.rows + j
		if known[i] && !sameNumber(got, seen[i]) {
			return fmt.Errorf("%v, and with other rows %v", got, seen[i])
		}
		seen[i], known[i] = got, true
		finite := got-got == 0
		switch {
		case want[i]-want[i] != 0 && finite, want[i] != want[i] && got == got:
			return fmt.Errorf("%v, want %v", got, want[i])
		case bound[i] < 1e32 && math.Abs(want[i]) < 3.4e38 && !(math.Abs(float64(got)-want[i]) <= bound[i]): // else sums overflow, if only on the way
			return fmt.Errorf("%v, want %v within %v", got, want[i], bound[i])
		}
		return nil
	})
}

// TestBFloat16Error measures what rounding activations and weights F16 to bfloat16 costs: of numbers that are
// normal, an error with a deviation of 2^-8.6 of one product's size, |w||x|/sqrt(cols).
func TestBFloat16Error(t *testing.T) {
	r := rand.New(rand.NewPCG(25, 26))
	const n, rows, cols = 32, 64, 2048
	for _, p := range Available() {
		if p.Form(tensor.F16, n) != BFloat16 {
			continue
		}
		m := Matrix{DType: tensor.F16, Rows: rows, Cols: cols, Data: make([]byte, 2*rows*cols)}
		for i := 0; i < len(m.Data); i += 2 {
			binary.LittleEndian.PutUint16(m.Data[i:], uint16(0x2400+r.IntN(0x1400)|r.IntN(2)<<15))
		}
		x := normal(r, n*cols)
		want, y := make([]float32, n*rows), make([]float32, n*rows)
		MatMulRef(want, x, n, m)
		p.MatMul(y, rows, prepared(p, BFloat16, x, n, cols), packed(p, m), 0, rows/PanelRows, aligned(p.ScratchBytes(m.DType, cols, n)))
		sum, row := 0.0, make([]float32, cols)
		for i := range y {
			m.RowRef(row, i%rows)
			x := x[i/rows*cols:][:cols]
			size := math.Sqrt(DotRef(row, row) * DotRef(x, x) / cols)
			sum += math.Pow(float64(y[i]-want[i])/size, 2)
		}
		if e := math.Sqrt(sum / float64(len(y))); e > 1.0/256 || e < 1.0/1024 {
			t.Errorf("%v: the error is %.2g of a product", p, e)
		} else {
			t.Logf("%v: the error is %.2g of a product", p, e)
		}
	}
}
