package cuda

type elementwiseParams struct {
	y, a, b     Address
	n           int64
	width, tanh int32
	value       float32
	_           int32
}

// elementwise has 256 threads a block, with four numbers each.
func elementwise(kernel string, p elementwiseParams) Launch {
	return launch(kernel, [3]uint32{uint32((p.n + 1023) / 1024), 1, 1}, 256, 0, &p)
}

// Bias: y = x + w, of x [rows, width] and w [width]. y may be x.
func Bias(y, x, w Address, rows, width int) Launch {
	p := &elementwiseParams{y: y, a: x, b: w, n: int64(rows) * int64(width), width: int32(width)}
	return launch("bias", [3]uint32{blocks(width, 256), uint32(min(rows, 1024)), 1}, 256, 0, p)
}

// Add: z = x + y [n]. z may be either.
func Add(z, x, y Address, n int64) Launch {
	return elementwise("add", elementwiseParams{y: z, a: x, b: y, n: n})
}

// SwiGLU: y = silu(gate) * up [n]. y may be either.
func SwiGLU(y, gate, up Address, n int64) Launch {
	return elementwise("swiglu", elementwiseParams{y: y, a: gate, b: up, n: n})
}

// GeGLU: y = gelu(gate) * up [n]. y may be either.
func GeGLU(y, gate, up Address, n int64, tanh bool) Launch {
	return elementwise("geglu", elementwiseParams{y: y, a: gate, b: up, n: n, tanh: flag(tanh)})
}

// GELU: y = gelu(x) [n]. y may be x.
func GELU(y, x Address, n int64, tanh bool) Launch {
	return elementwise("gelu", elementwiseParams{y: y, a: x, n: n, tanh: flag(tanh)})
}

// Scale: y = s*x [n]. y may be x.
func Scale(y, x Address, n int64, s float32) Launch {
	return elementwise("scale", elementwiseParams{y: y, a: x, n: n, value: s})
}

// Copy: y = x [n], any words of four bytes.
func Copy(y, x Address, n int64) Launch {
	return elementwise("copy", elementwiseParams{y: y, a: x, n: n})
}

// SoftCap: y = c*tanh(x/c) [n]. y may be x.
func SoftCap(y, x Address, n int64, c float32) Launch {
	return elementwise("softCap", elementwiseParams{y: y, a: x, n: n, value: c})
}

func flag(b bool) int32 {
	if b {
		return 1
	}
	return 0
}
