package cpu

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/estiba/estiba/runtime/tensor"
)

// aligned is n bytes at a multiple of 64, with 64 bytes before and after that must not change.
func aligned(n int) []byte {
	b := make([]byte, n+3*64)
	for i := range b {
		b[i] = 0xa5
	}
	at := 64 + int(-uintptr(unsafe.Pointer(unsafe.SliceData(b)))&63)
	return b[at : at+n : at+n]
}

// randomMatrix has random bits, but for the scales, which are small numbers; offset puts it at an odd address.
func randomMatrix(r *rand.Rand, d tensor.DType, rows, cols, offset int) Matrix {
	size := int(d.Bytes(int64(rows * cols)))
	data := make([]byte, size+offset)[offset:]
	for i := range data {
		data[i] = byte(r.Uint32())
	}
	block := int(d.Bytes(int64(d.Block())))
	put := func(at int) {
		h := uint16(0x2000 + r.UintN(0x800) | r.UintN(2)<<15) // 0.008 to 0.03
		data[at], data[at+1] = byte(h), byte(h>>8)
	}
	for at := 0; at < size; at += block {
		switch d {
		case tensor.F32:
			bits := math.Float32bits(float32(r.NormFloat64()))
			data[at], data[at+1], data[at+2], data[at+3] = byte(bits), byte(bits>>8), byte(bits>>16), byte(bits>>24)
		case tensor.BF16:
			bits := math.Float32bits(float32(r.NormFloat64()))
			data[at], data[at+1] = byte(bits>>16), byte(bits>>24)
		case tensor.Q4_1, tensor.Q5_1, tensor.Q4_K, tensor.Q5_K:
			put(at)
			put(at + 2)
		case tensor.Q6_K:
			put(at + 208)
		default:
			put(at)
		}
	}
	return Matrix{DType: d, Rows: rows, Cols: cols, Data: data}
}

// packed is w packed by p.
func packed(p Path, w Matrix) Packed {
	dst := Packed{DType: w.DType, Rows: w.Rows, Cols: w.Cols, Data: aligned(int(PackedBytes(w.DType, w.Rows, w.Cols)))}
	p.Pack(dst, w, 0, dst.Panels())
	return dst
}

// prepared is x in form f, by p.
func prepared(p Path, f Form, x []float32, n, cols int) Rows {
	if f == Float32 {
		return Rows{f, n, cols, unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(x))), 4*len(x))}
	}
	rows := Rows{f, n, cols, aligned(RowsBytes(f, n, cols))}
	p.Prepare(rows, x, 0, n)
	return rows
}

func normal(r *rand.Rand, n int) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(r.NormFloat64())
	}
	return x
}

// TestPackedRow wants of packed weights what they were.
func TestPackedRow(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, d := range tensor.DTypes() {
		for _, p := range Available() {
			for _, shape := range [][2]int{{1, 1}, {16, 2}, {17, 3}, {40, 5}} {
				rows, cols := shape[0], shape[1]*d.Block()
				w := randomMatrix(r, d, rows, cols, 1)
				got, want := make([]float32, cols), make([]float32, cols)
				for i := range rows {
					packed(p, w).Row(got, i)
					w.Row(want, i)
					for k := range got {
						if math.Float32bits(got[k]) != math.Float32bits(want[k]) {
							t.Fatalf("%v %v [%d, %d]: row %d, column %d: %v, want %v", p, d, rows, cols, i, k, got[k], want[k])
						}
					}
				}
			}
		}
	}
}

// TestPlainProduct wants of the plain product what the float64 twin gives, but for the rounding of activations.
func TestPlainProduct(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for _, d := range tensor.DTypes() {
		const n, rows, cols = 3, 20, 512
		w := randomMatrix(r, d, rows, cols, 0)
		x := normal(r, n*cols)
		want := make([]float32, n*rows)
		MatMulRef(want, x, n, w)
		y := make([]float32, n*rows)
		PlainGo.MatMul(y, rows, prepared(PlainGo, PlainGo.Form(d, n), x, n, cols), packed(PlainGo, w), 0, 2, nil)
		row := make([]float32, cols)
		for i := range y {
			w.RowRef(row, i%rows)
			bound := 1e-5
			if PlainGo.Form(d, n) == Int8 {
				bound = 1.0 / 127 // half a step of 4 deviations, over 512 columns' norm
			}
			norm := math.Sqrt(DotRef(row, row) * cols)
			if e := math.Abs(float64(y[i]-want[i])) / norm; e > bound {
				t.Fatalf("%v: element %d: %v, want %v (%.2g)", d, i, y[i], want[i], e)
			}
		}
	}
}

// int8Formats are those whose products take activations as Int8.
func int8Formats() (all []tensor.DType) {
	for _, d := range tensor.DTypes() {
		if PlainGo.Form(d, 1) == Int8 {
			all = append(all, d)
		}
	}
	return all
}

// TestInt8Product wants of every path the bits of the plain product, for each row alone and with others.
func TestInt8Product(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for _, s := range shapes(r, int8Formats()) {
		w := packed(PlainGo, randomMatrix(r, s.d, s.rows, s.cols, 0))
		in := prepared(PlainGo, Int8, anyNumbers(r, s.n*s.cols, s.strange), s.n, s.cols)
		want := make([]float32, s.n*s.rows)
		PlainGo.MatMul(want, s.rows, in, w, 0, w.Panels(), nil)
		for _, p := range Available() {
			tryProduct(t, r, p.multiply, s, in, w, func(row, j int, got float32) error {
				if want := want[row*s.rows+j]; !sameNumber(got, want) {
					return fmt.Errorf("%v, want %v", got, want)
				}
				return nil
			})
			// Both kernels, whichever int8 would choose.
			for name, kernel := range map[string]func(Path, tensor.DType, unsafe.Pointer){"few": fewInt8, "many": manyInt8} {
				if p == PlainGo {
					continue
				}
				y := make([]float32, s.n*s.rows)
				m := &product{y: y, stride: s.rows, n: s.n, x: in, w: w, to: w.Panels(), scratch: aligned(int8Scratch(max(s.n, fewRows+1)))}
				a := m.args()
				kernel(p, s.d, unsafe.Pointer(&a))
				for i := range y {
					if !sameNumber(y[i], want[i]) {
						t.Fatalf("%v %s %+v: element %d of row %d: %v, want %v", p, name, s, i%s.rows, i/s.rows, y[i], want[i])
					}
				}
			}
		}
	}
}

// fencedBytes is n bytes at a multiple of 64, so near to memory that nobody may touch as that allows; exact, they
// end there, wherever they begin.
func fencedBytes(t *testing.T, n int, exact bool) []byte {
	page := unix.Getpagesize()
	size := (n+page-1)/page*page + page
	data, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(data) })
	if err := unix.Mprotect(data[size-page:], unix.PROT_NONE); err != nil {
		t.Fatal(err)
	}
	at := size - page - n
	if !exact {
		at &^= 63
	}
	return data[at : at+n : at+n]
}

// FuzzMatMul packs and multiplies whatever bits there are: every path gives the bits that plain Go gives (but
// for activations rounded to bfloat16), and touches nothing outside of its arguments.
func FuzzMatMul(f *testing.F) {
	for d := range tensor.DTypes() {
		f.Add(uint8(d), uint8(20), uint8(2), uint8(3), uint64(d), []byte{}, []byte{})
		f.Add(uint8(d), uint8(15), uint8(4), uint8(9), uint64(d), []byte{0, 0x7c, 255}, []byte{0, 0, 0x80, 0x7f, 1, 0, 0, 0})
		f.Add(uint8(d), uint8(32), uint8(0), uint8(66), uint64(d), []byte{128}, []byte{0xff, 0xff, 0x7f, 0x7f})
	}
	f.Fuzz(func(t *testing.T, format, rows8, cols8, n8 uint8, seed uint64, bits, numbers []byte) {
		all := tensor.DTypes()
		d := all[int(format)%len(all)]
		rows, cols, n := 1+int(rows8)%50, (1+int(cols8)%(640/d.Block()))*d.Block(), 1+int(n8)%80
		r := rand.New(rand.NewPCG(seed, 0))
		src := Matrix{d, rows, cols, fencedBytes(t, int(d.Bytes(int64(rows*cols))), true)}
		for i := range src.Data {
			src.Data[i] = byte(r.Uint32())
			if len(bits) > 0 && r.IntN(2) == 0 {
				src.Data[i] = bits[i%len(bits)]
			}
		}
		x := float32s(fencedBytes(t, 4*n*cols, false))
		for i := range x {
			x[i] = float32(r.NormFloat64())
			if at := i * 4 % max(1, len(numbers)); at+4 <= len(numbers) && r.IntN(4) == 0 {
				x[i] = math.Float32frombits(binary.LittleEndian.Uint32(numbers[at:]))
			}
		}
		pack := func(p Path) Packed {
			w := Packed{d, rows, cols, fencedBytes(t, int(PackedBytes(d, rows, cols)), false)}
			p.Pack(w, src, 0, w.Panels())
			return w
		}
		prepare := func(p Path, form Form) Rows {
			if form == Float32 {
				return prepared(p, form, x, n, cols)
			}
			in := Rows{form, n, cols, fencedBytes(t, RowsBytes(form, n, cols), false)}
			p.Prepare(in, x, 0, n)
			return in
		}
		plain := pack(PlainGo)
		for _, p := range Available() {
			form := p.Form(d, n)
			want := make([]float32, n*rows)
			PlainGo.MatMul(want, rows, prepare(PlainGo, form), plain, 0, plain.Panels(), nil)
			w := pack(p)
			if !bytes.Equal(w.Data, plain.Data) {
				t.Fatalf("%v packs %v [%d, %d] in other bytes", p, d, rows, cols)
			}
			got := float32s(fencedBytes(t, 4*n*rows, true))
			scratch := fencedBytes(t, p.ScratchBytes(d, cols, n), false)
			p.MatMul(got, rows, prepare(p, form), w, 0, w.Panels(), scratch)
			for i := range got {
				if form != BFloat16 && !sameNumber(got[i], want[i]) {
					t.Fatalf("%v %v [%d, %d], %d rows: element %d of row %d: %v, want %v", p, d, rows, cols, n, i%rows, i/rows, got[i], want[i])
				}
			}
		}
	})
}

// TestPrepare wants of every path the bits of plain Go, whatever the numbers are.
func TestPrepare(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	strange := []float32{0, float32(math.Copysign(0, -1)), 1, -1, 0x1p-149, 0x1p-126, 0x1p-100, 0x1p-101, -0x1p-99, math.MaxFloat32, -math.MaxFloat32,
		float32(math.Inf(1)), float32(math.Inf(-1)), float32(math.NaN()), math.Float32frombits(0xffa00001), 0x1p127, 0.5, 1.5, 2.5}
	for _, form := range []Form{Int8, BFloat16} {
		for _, cols := range []int{1, 2, 31, 32, 33, 64, 96, 320} {
			if form == Int8 && cols%32 != 0 {
				continue
			}
			for round := range 60 {
				const n = 3
				x := normal(r, n*cols)
				for i := range x {
					switch {
					case round%4 == 1 && r.IntN(cols) == 0:
						x[i] = strange[r.IntN(len(strange))]
					case round%4 == 2:
						x[i] = math.Float32frombits(r.Uint32()) // any bits
					case round%4 == 3: // halves of a step
						x[i] = float32(r.IntN(255)-127) / 2
					}
				}
				want := prepared(PlainGo, form, x, n, cols)
				for _, p := range Available() {
					got := prepared(p, form, x, n, cols)
					for i := range want.Data {
						if got.Data[i] != want.Data[i] {
							t.Fatalf("%v form %d, %d columns: byte %d: %#x, want %#x of %v", p, form, cols, i, got.Data[i], want.Data[i], x)
						}
					}
				}
			}
		}
	}
}

// TestPack wants of every path the bytes of plain Go, of rows at any address.
func TestPack(t *testing.T) {
	r := rand.New(rand.NewPCG(11, 12))
	for _, d := range tensor.DTypes() {
		for _, cols := range []int{1, 2, 3, 5, 16, 31, 64} {
			for _, rows := range []int{1, 15, 16, 33, 48} {
				w := randomMatrix(r, d, rows, cols*d.Block(), r.IntN(64))
				want := packed(PlainGo, w)
				for _, p := range Available() {
					if got := packed(p, w); !bytes.Equal(got.Data, want.Data) {
						t.Fatalf("%v packs %v [%d, %d] in other bytes", p, d, rows, w.Cols)
					}
				}
			}
		}
	}
}

// TestProductBeyond wants a panic where a product would read or write what is not its own, or has no kernel.
func TestProductBeyond(t *testing.T) {
	const n, rows, cols = 3, 40, 256
	r := rand.New(rand.NewPCG(15, 16))
	for _, p := range Available() {
		for _, d := range []tensor.DType{tensor.F16, tensor.Q4_0, tensor.Q4_K} {
			w, x := packed(p, randomMatrix(r, d, rows, cols, 0)), normal(r, n*cols)
			for what, spoil := range map[string]func(m *product){
				"a short result":          func(m *product) { m.y = m.y[:n*rows-1] },
				"rows that go back":       func(m *product) { m.stride = -rows },
				"a row at the end of all": func(m *product) { m.yAt, m.rows, m.n = []int{math.MaxInt - 5}, []int{0}, 1 },
				"a row that is not there": func(m *product) { m.yAt, m.rows, m.n = []int{0}, []int{n}, 1 },
				"more rows than places":   func(m *product) { m.yAt, m.rows, m.n = []int{0}, []int{0, 1}, 2 },
				"short activations":       func(m *product) { m.x.Data = m.x.Data[:len(m.x.Data)-1] },
				"short weights":           func(m *product) { m.w.Data = m.w.Data[:len(m.w.Data)-1] },
				"other columns":           func(m *product) { m.w.Cols -= d.Block() },
				"no columns":              func(m *product) { m.w.Cols, m.x.Cols = 0, 0 },
				"more panels":             func(m *product) { m.to++ },
				"panels before the first": func(m *product) { m.from = -1 },
			} {
				m := &product{y: make([]float32, n*rows), stride: rows, n: n, x: prepared(p, p.Form(d, n), x, n, cols), w: w, to: w.Panels()}
				m.scratch = aligned(p.ScratchBytes(d, cols, n))
				spoil(m)
				Panics(t, fmt.Sprintf("%v %v: %s", p, d, what), func() { p.product(m) })
			}
			for _, f := range []Form{Float32, BFloat16, Int8} {
				if !p.takes(f, d) {
					y := make([]float32, n*rows)
					Panics(t, fmt.Sprintf("%v %v in form %d", p, d, f), func() {
						p.MatMul(y, rows, prepared(PlainGo, f, x, n, cols), w, 0, w.Panels(), aligned(1<<20))
					})
				} else if p.Form(d, n) != f && p.Form(d, fewRows+1) != f && p != PlainGo && p != AMX {
					t.Errorf("%v takes %v in form %d, which it does not ask for", p, d, f)
				}
			}
		}
	}
}

// Panics wants f to.
func Panics(t *testing.T, what string, f func()) {
	t.Helper()
	defer func() {
		if recover() == nil {
			t.Errorf("no panic: %s", what)
		}
	}()
	f()
}

// TestNoGarbage wants products and activations without garbage: a step of a small model has hundreds of them.
func TestNoGarbage(t *testing.T) {
	r := rand.New(rand.NewPCG(13, 14))
	for _, p := range Available() {
		for _, d := range tensor.DTypes() {
			for _, n := range []int{1, 9, 70} {
				if p == PlainGo {
					continue
				}
				const cols = 256
				w := packed(p, randomMatrix(r, d, 48, cols, 0))
				x := normal(r, n*cols)
				in := prepared(p, p.Form(d, n), x, n, cols)
				y, scratch := make([]float32, n*48), aligned(p.ScratchBytes(d, cols, n))
				if allocs := testing.AllocsPerRun(10, func() {
					p.Prepare(in, x, 0, n)
					p.MatMul(y, 48, in, w, 0, 3, scratch)
				}); allocs > 0 {
					t.Errorf("%v multiplies %d rows with %v in %v allocations", p, n, d, allocs)
				}
			}
		}
	}
}
