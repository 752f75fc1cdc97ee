package cuda

import "fmt"

// RouteParams of a row's choice among experts: see graph.Route and cpu.Route, with which it agrees in the numbers, and in the
// shares to rounding.
type RouteParams struct {
	Scores    Address // f32 [Rows, Experts]
	Y         Address // f32 [Rows, 2*TopK]
	Rows      int32
	Experts   int32 // at most MaxExperts
	TopK      int32 // at most Experts
	Normalize int32 // 0 or 1
}

// MaxExperts that Route chooses among.
const MaxExperts = 2048

// Route chooses experts. It panics if there are more than MaxExperts.
func Route(p RouteParams) Launch {
	if p.Experts > MaxExperts || p.TopK > p.Experts {
		panic(fmt.Sprintf("cuda: route to %d of %d experts", p.TopK, p.Experts))
	}
	return launch("routeExperts", [3]uint32{blocks(int(p.Rows), 4), 1, 1}, 128, 0, &p)
}

// ExpertSumParams of y = the sum of the parts, each times its expert's share. y may not be x.
type ExpertSumParams struct {
	X, Route Address // f32 [rows, TopK*Width], [rows, 2*TopK]
	Y        Address // f32 [rows, Width]
	Width    int32
	TopK     int32
}

// ExpertSum of so many rows, at most 65535.
func ExpertSum(p ExpertSumParams, rows int) Launch {
	return launch("sumExperts", [3]uint32{blocks(int(p.Width), 256), uint32(rows), 1}, 256, 0, &p)
}
