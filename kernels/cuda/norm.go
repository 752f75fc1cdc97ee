package cuda

// NormParams are a normalization's. Rows of what is normalized may be those of x + residual, which a
// residual stream needs anyway.
type NormParams struct {
	X, Y     Address // [Rows, Width] float32; Y may be X, Residual or Sum
	Residual Address // [Rows, Width] float32, or 0
	Sum      Address // [Rows, Width] float32, with Residual: X + Residual; may be either
	W        Address // [Width/Heads] float32
	Bias     Address // [Width] float32, LayerNorm alone
	Bytes    Bytes   // Y in this form too, if NormBytes

	Rows, Width int
	Heads       int // RMSNorm: parts of a row, each normalized by itself; 0 is 1
	Eps         float32
	Shift       float32 // RMSNorm: added to W
}

// normParams as in norm.cu.
type normParams struct {
	y, x, residual, sum, w, bias Address
	bytes                        Bytes
	rows, width                  int32
	eps, shift                   float32
}

// NormBytes says that a normalization of rows so wide, each as a whole, can give them as bytes too.
func NormBytes(width int) bool { return width > 256 && width%128 == 0 }

// RMSNorm: Y = x / sqrt(mean(x²)+Eps) * (Shift+W) of each part of each row. Sums are float32.
func RMSNorm(p NormParams) Launch {
	heads := max(p.Heads, 1)
	rows, width := p.Rows*heads, p.Width/heads
	c := &normParams{p.Y, p.X, p.Residual, p.Sum, p.W, 0, p.Bytes, int32(rows), int32(width), p.Eps, p.Shift}
	if heads > 1 || width <= 256 {
		return launch("rmsNormParts", [3]uint32{blocks(rows, 8), 1, 1}, 256, 0, c)
	}
	return launch("rmsNorm", [3]uint32{uint32(rows), 1, 1}, rowThreads(width), 0, c)
}

// LayerNorm: Y = (x-mean(x)) / sqrt(variance(x)+Eps) * W + Bias of each row. Sums are float32.
func LayerNorm(p NormParams) Launch {
	c := &normParams{p.Y, p.X, p.Residual, p.Sum, p.W, p.Bias, p.Bytes, int32(p.Rows), int32(p.Width), p.Eps, 0}
	return launch("layerNorm", [3]uint32{uint32(p.Rows), 1, 1}, rowThreads(p.Width), 0, c)
}

// rowThreads are the threads of a block that has a row: one for four numbers, whole warps, 1024 at most.
// A step of one token has one block; what it takes is how long its threads wait for memory, so they are many.
func rowThreads(width int) uint32 { return min(1024, 32*blocks(width, 128)) }
