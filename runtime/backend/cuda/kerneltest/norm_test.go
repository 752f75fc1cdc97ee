//go:build cuda && cgo

package kerneltest

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"unsafe"

	cpu "github.com/estiba/estiba/kernels/cpu"
	"github.com/estiba/estiba/kernels/cuda"
	"github.com/estiba/estiba/runtime/tensor"
)

// normal numbers, of that deviation.
func normal(r *rand.Rand, n int, deviation float64) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(deviation * r.NormFloat64())
	}
	return x
}

// vector of a norm or a bias, as kernels/cpu has it.
func vector(x []float32) cpu.Matrix {
	return cpu.Matrix{DType: tensor.F32, Rows: 1, Cols: len(x), Data: unsafe.Slice((*byte)(unsafe.Pointer(&x[0])), 4*len(x))}
}

// near compares to so much of the larger of the number and floor.
func near(t *testing.T, what string, got, want []float32, relative, floor float64) {
	t.Helper()
	for i, w := range want {
		g := got[i]
		if g == w || g != g && w != w {
			continue
		}
		if !(math.Abs(float64(g)-float64(w)) <= relative*max(math.Abs(float64(w)), floor)) {
			t.Fatalf("%s: number %d is %v, want %v", what, i, g, w)
		}
	}
}

// sameBytes compares numbers as bytes on the device with plain Go's, to the last bit.
func sameBytes(t *testing.T, what string, d *device, on cuda.Bytes, x []float32, cols int) {
	t.Helper()
	q, scales := download[int8](d, on.Q, len(x)), download[float32](d, on.Scales, len(x)/16)
	for at := 0; at < len(x); at += 32 {
		group, most := x[at:at+32], float32(0)
		for _, v := range group {
			most = max(most, v, -v)
		}
		sum := float32(0)
		for i, v := range group {
			want := int8(math.RoundToEven(float64(v * (127 / most))))
			column := at%cols + i
			if got := q[at/cols*cols+column/32*16+column/16%2*cols/2+column%16]; got != want {
				t.Fatalf("%s: byte %d of %v, of at most %v, is %d, want %d", what, at+i, v, most, got, want)
			}
			sum += float32(want)
		}
		if scale := most / 127; scales[at/16] != scale || scales[at/16+1] != scale*sum {
			t.Fatalf("%s: scales of group %d are %v, want %v and %v", what, at/32, scales[at/16:at/16+2], scale, scale*sum)
		}
	}
}

// TestNorms: to 4e-6 of the largest of a row's usual numbers, plain, in place, and with a residual.
func TestNorms(t *testing.T) {
	d := open(t)
	r := rand.New(rand.NewPCG(1, 1))
	for _, c := range []struct{ rows, width, heads int }{
		{1, 1, 1}, {3, 5, 1}, {9, 64, 1}, {2, 255, 1}, {1, 257, 1}, {3, 768, 1}, {1, 4096, 1}, {2, 5003, 1}, {1, 8192, 1},
		{1, 128, 1}, {3, 96, 3}, {5, 77, 7}, {2, 1024, 8}, {3, 512, 2},
	} {
		for _, residual := range []bool{false, true} {
			name := fmt.Sprintf("%+v, residual %v", c, residual)
			part := c.width / c.heads
			x, add := normal(r, c.rows*c.width, 3), normal(r, c.rows*c.width, 2)
			w, bias := normal(r, part, 1), normal(r, c.width, 1)
			sum := slices.Clone(x)
			if residual {
				cpu.Add(sum, x, add)
			}
			p := cuda.NormParams{
				X: upload(d, x), Y: upload(d, filled(len(x), float32(math.NaN()))), W: upload(d, w),
				Rows: c.rows, Width: c.width, Heads: c.heads, Eps: 1e-5, Shift: float32(c.rows % 2),
			}
			if residual {
				p.Residual = upload(d, add)
				p.Sum = p.Residual // as a residual stream has it
			}
			_, end := cuda.BytesAt(0, c.rows, c.width)
			whole := c.heads == 1 && cuda.NormBytes(c.width)
			if whole {
				p.Bytes, _ = cuda.BytesAt(d.allocate(int(end)), c.rows, c.width)
			}
			d.run(t, cuda.RMSNorm(p))
			if whole {
				sameBytes(t, "rms norm "+name, d, p.Bytes, download[float32](d, p.Y, len(x)), c.width)
			}
			want := make([]float32, len(x))
			for at := 0; at < len(x); at += part {
				cpu.RMSNormRef(want[at:at+part], sum[at:at+part], vector(w), p.Eps, p.Shift)
			}
			near(t, "rms norm "+name, download[float32](d, p.Y, len(x)), want, 4e-6, 1e-2)
			if residual {
				if got := download[float32](d, p.Sum, len(x)); !slices.Equal(got, sum) {
					t.Fatalf("%s: the sum is not x + residual", name)
				}
				write(d, p.Residual, add)
			}

			if c.heads > 1 {
				continue
			}
			p.Bias = upload(d, bias)
			p.Y = p.X
			d.run(t, cuda.LayerNorm(p))
			for at := 0; at < len(x); at += c.width {
				cpu.LayerNormRef(want[at:at+c.width], sum[at:at+c.width], vector(w), vector(bias), p.Eps)
			}
			if c.width > 1 { // of one number the reference's variance is rounding errors alone
				near(t, "layer norm "+name, download[float32](d, p.Y, len(x)), want, 8e-6, 1)
			}
		}
	}
}

// TestAngles: cosines and sines to 2e-7, at positions near and far.
func TestAngles(t *testing.T) {
	d := open(t)
	r := rand.New(rand.NewPCG(2, 2))
	for _, pairs := range []int{1, 16, 33, 64} {
		positions := []int32{0, 1, 2, 17, 1000, 8191, 131071, 1<<20 - 1}
		for range 50 {
			positions = append(positions, r.Int32N(1<<20))
		}
		frequencies, divisors := make([]float32, pairs), make([]float32, pairs)
		for i := range frequencies {
			frequencies[i] = float32(math.Pow(10000, -float64(i)/float64(pairs)))
			divisors[i] = 1 + 7*r.Float32()
		}
		for _, divided := range []bool{false, true} {
			n := len(positions) * pairs
			p := cuda.AnglesParams{
				Cos: upload(d, filled(n, float32(math.NaN()))), Sin: upload(d, filled(n, float32(math.NaN()))), Positions: upload(d, positions),
				Frequencies: upload(d, frequencies), Rows: len(positions), Pairs: pairs, Amplitude: 1.25,
			}
			turned := slices.Clone(frequencies)
			if divided {
				p.Divisors = upload(d, divisors)
				for i := range turned {
					turned[i] /= divisors[i]
				}
			}
			d.run(t, cuda.Angles(p))
			cos, sin := make([]float32, n), make([]float32, n)
			for i, position := range positions {
				cpu.Angles(cos[i*pairs:][:pairs], sin[i*pairs:][:pairs], int(position), turned, p.Amplitude)
			}
			near(t, "cosines", download[float32](d, p.Cos, n), cos, 2e-7, 1)
			near(t, "sines", download[float32](d, p.Sin, n), sin, 2e-7, 1)
		}
	}
}

// TestRope: queries as the CPU has them but for a rounding, keys and values in the right places of the cache, and
// nothing else there touched.
func TestRope(t *testing.T) {
	d := open(t)
	r := rand.New(rand.NewPCG(3, 3))
	for _, c := range []struct {
		heads, kvHeads, dim, pairs int
		neighbours                 bool
	}{
		{4, 2, 64, 32, false}, {3, 1, 10, 5, true}, {2, 2, 7, 2, false}, {1, 1, 9, 3, true}, {0, 3, 16, 8, false}, {5, 0, 32, 16, true}, {0, 2, 5, 0, false},
	} {
		const blockTokens, layers, layer, tableStride, rows = 4, 3, 1, 4, 9
		positions := []int32{0, 1, 2, 3, 4, 9, 10, 13, 2}
		spans := []int32{0, 0, 0, 0, 0, 1, 1, 2, 3}
		tables := []int32{7, 2, 0, 0, 5, 1, 8, 0, 0, 3, 6, 4, 9, 0, 0, 0}
		width := c.kvHeads * c.dim
		blockStride := layers * 2 * blockTokens * width * 2
		cache := make([]uint16, 10*blockStride/2)
		for i := range cache {
			cache[i] = uint16(i)
		}
		x, k, v := normal(r, rows*c.heads*c.dim, 2), normal(r, rows*width, 2), normal(r, rows*width, 2)
		cos, sin := normal(r, rows*c.pairs, 1), normal(r, rows*c.pairs, 1)
		at := upload(d, cache)
		keys := layer * 2 * blockTokens * width * 2
		p := cuda.RopeParams{
			X: upload(d, x), Heads: c.heads, K: upload(d, k), V: upload(d, v), KVHeads: c.kvHeads,
			Cache: cuda.CachePlace{
				Keys: at + cuda.Address(keys), Values: at + cuda.Address(keys+blockTokens*width*2), BlockStride: int64(blockStride), BlockTokens: blockTokens,
				Positions: upload(d, positions), SpanOf: upload(d, spans), Tables: upload(d, tables), TableStride: tableStride,
			},
			Cos: upload(d, cos), Sin: upload(d, sin), Rows: rows, Dim: c.dim, Pairs: c.pairs, Neighbours: c.neighbours,
		}
		p.Y = p.X
		d.run(t, cuda.Rope(p))

		want, halves := make([]float32, len(x)), slices.Clone(cache)
		for row := range rows {
			cs, sn := cos[row*c.pairs:][:c.pairs], sin[row*c.pairs:][:c.pairs]
			cpu.Rotate(want[row*c.heads*c.dim:][:c.heads*c.dim], x[row*c.heads*c.dim:][:c.heads*c.dim], cs, sn, c.dim, c.neighbours)
			rotated := make([]float32, width)
			cpu.Rotate(rotated, k[row*width:][:width], cs, sn, c.dim, c.neighbours)
			block := int(tables[int(spans[row])*tableStride+int(positions[row])/blockTokens])
			place := (block*blockStride+keys)/2 + int(positions[row])%blockTokens*width
			for i := range width {
				halves[place+i] = toHalf(rotated[i])
				halves[place+blockTokens*width+i] = toHalf(v[row*width+i])
			}
		}
		near(t, fmt.Sprintf("%+v", c), download[float32](d, p.Y, len(x)), want, 1e-6, 1)
		for i, got := range download[uint16](d, at, len(cache)) {
			if w := halves[i]; got != w {
				t.Fatalf("%+v: half %d of the cache is %x, want %x", c, i, got, w)
			}
		}
	}
}

// toHalf rounds to the nearest half.
func toHalf(x float32) uint16 {
	var h [1]uint16
	cpu.PlainGo.Store(h[:], []float32{x})
	return h[0]
}

// TestElementwise: to a few roundings, at sizes that are no whole blocks, in place where an op may.
func TestElementwise(t *testing.T) {
	d := open(t)
	r := rand.New(rand.NewPCG(4, 4))
	for _, n := range []int{1, 3, 4, 1023, 1024, 5000} {
		a, b := normal(r, n, 4), normal(r, n, 4)
		for i := 0; i < n; i += 7 {
			a[i] = []float32{0, float32(math.Copysign(0, -1)), 1e-30, -1e-30, 80, -80, 1000, -1000, 20, -20}[i/7%10]
		}
		for _, c := range []struct {
			name string
			l    func(y, a, b cuda.Address) cuda.Launch
			want func(y []float32)
			by   float64
		}{
			{"add", func(y, a, b cuda.Address) cuda.Launch { return cuda.Add(y, a, b, int64(n)) }, func(y []float32) { cpu.Add(y, a, b) }, 0},
			{"swiglu", func(y, a, b cuda.Address) cuda.Launch { return cuda.SwiGLU(y, a, b, int64(n)) }, func(y []float32) { cpu.SwiGLURef(y, a, b) }, 2e-6},
			{"geglu", func(y, a, b cuda.Address) cuda.Launch { return cuda.GeGLU(y, a, b, int64(n), false) }, func(y []float32) { cpu.GeGLURef(y, a, b, false) }, 2e-6},
			{"geglu tanh", func(y, a, b cuda.Address) cuda.Launch { return cuda.GeGLU(y, a, b, int64(n), true) }, func(y []float32) { cpu.GeGLURef(y, a, b, true) }, 2e-6},
			{"gelu", func(y, a, b cuda.Address) cuda.Launch { return cuda.GELU(y, a, int64(n), false) }, func(y []float32) { cpu.GELURef(y, a, false) }, 2e-6},
			{"gelu tanh", func(y, a, b cuda.Address) cuda.Launch { return cuda.GELU(y, a, int64(n), true) }, func(y []float32) { cpu.GELURef(y, a, true) }, 2e-6},
			{"scale", func(y, a, b cuda.Address) cuda.Launch { return cuda.Scale(y, a, int64(n), 1.7) }, func(y []float32) { cpu.Scale(y, a, 1.7) }, 0},
			{"copy", func(y, a, b cuda.Address) cuda.Launch { return cuda.Copy(y, a, int64(n)) }, func(y []float32) { copy(y, a) }, 0},
			{"soft cap", func(y, a, b cuda.Address) cuda.Launch { return cuda.SoftCap(y, a, int64(n), 30) }, func(y []float32) { cpu.SoftCapRef(y, a, 30) }, 5e-7},
		} {
			want := make([]float32, n)
			c.want(want)
			for _, place := range []string{"apart", "over a", "over b"} {
				x, z := upload(d, a), upload(d, b)
				y := map[string]cuda.Address{"apart": upload(d, filled(n, float32(math.NaN()))), "over a": x, "over b": z}[place]
				d.run(t, c.l(y, x, z))
				near(t, fmt.Sprintf("%s of %d, %s", c.name, n, place), download[float32](d, y, n), want, c.by, 0.05)
			}
		}
	}
	for _, c := range []struct{ rows, width int }{{1, 1}, {3, 5}, {7, 1026}, {2, 64}, {1025, 3}} {
		x, w := normal(r, c.rows*c.width, 1), normal(r, c.width, 1)
		y := upload(d, x)
		d.run(t, cuda.Bias(y, y, upload(d, w), c.rows, c.width))
		want := make([]float32, len(x))
		for i := range want {
			want[i] = x[i] + w[i%c.width]
		}
		near(t, fmt.Sprintf("bias %+v", c), download[float32](d, y, len(x)), want, 0, 0)
	}
}

// TestEmbed: exactly, in every format, from packed tables.
func TestEmbed(t *testing.T) {
	d := open(t)
	r := rand.New(rand.NewPCG(5, 5))
	for _, format := range tensor.DTypes() {
		for _, width := range []int{format.Block(), 3 * format.Block(), 5*format.Block() + 256} {
			const tableRows = 7
			raw := make([]byte, format.Bytes(int64(tableRows*width)))
			for i := range raw {
				raw[i] = byte(r.Uint32())
			}
			table := cpu.Matrix{DType: format, Rows: tableRows, Cols: width, Data: raw}
			index := []int32{6, 0, 3, 3, 1}
			w := cuda.Weights{Data: d.allocate(int(cuda.PackedBytes(format, tableRows, width))), Type: format, Rows: tableRows, Cols: width}
			y := upload(d, filled(len(index)*width, float32(0)))
			d.run(t, cuda.Pack(w, upload(d, raw), 0, tableRows), cuda.Embed(cuda.EmbedParams{
				Y: y, Table: w.Data, Type: format, TableRows: tableRows, Width: width, Index: upload(d, index), Rows: len(index),
			}))
			want := make([]float32, 0, len(index)*width)
			row := make([]float32, width)
			for _, i := range index {
				table.Row(row, int(i))
				want = append(want, row...)
			}
			near(t, fmt.Sprintf("%v of %d", format, width), download[float32](d, y, len(want)), want, 0, 0)
		}
	}
	x := normal(r, 5*33, 1)
	y := upload(d, filled(3*33, float32(0)))
	d.run(t, cuda.Rows(y, upload(d, x), upload(d, []int32{4, 0, 2}), 3, 33))
	near(t, "rows", download[float32](d, y, 3*33), slices.Concat(x[4*33:], x[:33], x[2*33:3*33]), 0, 0)
}
