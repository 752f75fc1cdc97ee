package tensor

import (
	"math"
	"testing"
)

func TestDTypes(t *testing.T) {
	if n := len(DTypes()); n != 11 {
		t.Errorf("%d formats", n)
	}
	for _, d := range DTypes() {
		if got, ok := ParseDType(d.String()); !ok || got != d {
			t.Errorf("%v parses as %v", d, got)
		}
		if d.Block() < 1 || 256%d.Block() != 0 || d.Bytes(256) <= 0 || d.Bytes(256) > 4*256 || d.Bytes(1<<40) != d.Bytes(256)<<32 {
			t.Errorf("%v: blocks of %d, %d bytes for 256", d, d.Block(), d.Bytes(256))
		}
	}
	for _, d := range []DType{Invalid, dtypes, 255} {
		if d.Block() != 0 || d.Bytes(256) != 0 || d.String() == "" {
			t.Errorf("%v: blocks of %d, %d bytes", d, d.Block(), d.Bytes(256))
		}
	}
	if _, ok := ParseDType(""); ok {
		t.Error("no name is a format")
	}
}

func TestShape(t *testing.T) {
	for _, c := range []struct {
		shape Shape
		n     int64
		ok    bool
	}{
		{nil, 1, true}, {Shape{3, 4}, 12, true}, {Shape{0, 1 << 62}, 0, true}, {Shape{-1}, 0, false}, {Shape{1 << 32, 1 << 31}, 0, false}, {Shape{math.MaxInt}, math.MaxInt, true},
	} {
		if n, ok := c.shape.Elements(); n != c.n || ok != c.ok {
			t.Errorf("%v: %d, %v", c.shape, n, ok)
		}
	}
	if !(Shape{1, 2}).Equal(Shape{1, 2}) || (Shape{1, 2}).Equal(Shape{2, 1}) || (Shape{1}).Equal(Shape{1, 1}) {
		t.Error("Equal")
	}
}
