package cuda

import "github.com/estiba/estiba/runtime/tensor"

// EmbedParams are those of Embed.
type EmbedParams struct {
	Y                Address // [Rows, Width] float32
	Table            Address // weights [TableRows, Width] of Type, packed
	Type             tensor.DType
	TableRows, Width int
	Index            Address // [Rows] int32: which row of the table
	Rows             int
}

type embedParams struct {
	y, table                    Address
	format, tableRows, width, _ int32
	index                       Address
}

// Embed: each row of Y is the row of the table that Index names, exactly: ops Embed (by tokens) and
// Positions (by positions).
func Embed(p EmbedParams) Launch {
	return launch("embedRows", [3]uint32{uint32(p.Rows), 1, 1}, 256, 0, &embedParams{
		p.Y, p.Table, int32(p.Type), int32(p.TableRows), int32(p.Width), 0, p.Index,
	})
}

type rowsParams struct {
	y, x, index Address
	width, _    int32
}

// Rows: y [n, width] are the rows of x [any, width] that wanted [n] int32 names.
func Rows(y, x, wanted Address, n, width int) Launch {
	return launch("gatherRows", [3]uint32{uint32(n), 1, 1}, 256, 0, &rowsParams{y, x, wanted, int32(width), 0})
}
