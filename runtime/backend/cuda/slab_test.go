//go:build cuda && cgo

package cuda

import (
	"errors"
	"math/rand/v2"
	"testing"

	kernels "github.com/estiba/estiba/kernels/cuda"
	"github.com/estiba/estiba/runtime/backend/cuda/driver/emulated"
)

func slabOf(t *testing.T, b *Backend, extents int, lazy bool) *slab {
	t.Helper()
	s, err := newSlab(b.context, Extent, extents, 0, lazy)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// TestSlabLumps: a region has few lumps, whatever the memory was before.
func TestSlabLumps(t *testing.T) {
	s := slabOf(t, opened(t, 4), 3*largeLump+7, false)
	lumps := func(extents, want int) region {
		t.Helper()
		r, err := s.room(int64(extents) * Extent)
		if err != nil {
			t.Fatal(err)
		}
		if len(r.lumps) != want || r.extents != extents {
			t.Errorf("%d extents are %d in %d lumps, want %d", extents, r.extents, len(r.lumps), want)
		}
		return r
	}
	free := func(all ...region) {
		t.Helper()
		for _, r := range all {
			if err := s.release(&r); err != nil {
				t.Fatal(err)
			}
		}
	}
	free(lumps(3*largeLump+7, 3+7))
	free(lumps(10, 10), lumps(largeLump-1, largeLump-1), lumps(largeLump+2, 3)) // splits two
	free(lumps(3*largeLump+7, 3+7))                                             // which are put together again
	if _, err := s.reserve(); err != nil {
		t.Fatal(err)
	}
	var kv []int32
	for e := range int32(3*largeLump + 6) {
		if fresh, err := s.back(e); !fresh || err != nil {
			t.Fatal(fresh, err)
		}
		kv = append(kv, e)
	}
	if _, err := s.back(3*largeLump + 6); !errors.Is(err, errFull) {
		t.Errorf("one more than there are: got %v", err)
	}
	s.discard(kv)
	free(lumps(3*largeLump+6, 3+6)) // the scrap is the seventh
}

// TestSlabDiscardsLater: the driver has nothing to do where extents are discarded, until somebody needs the memory.
func TestSlabDiscardsLater(t *testing.T) {
	emulated.Set(t, "")
	s := slabOf(t, opened(t, 4), 2*largeLump, false)
	if _, err := s.reserve(); err != nil {
		t.Fatal(err)
	}
	var kv []int32
	for e := range int32(2*largeLump - 1) {
		if _, err := s.back(e); err != nil {
			t.Fatal(err)
		}
		kv = append(kv, e)
	}
	s.discard(kv)
	emulated.Set(t, "fail=map:1:2")
	if fresh, err := s.back(5); !fresh || err != nil {
		t.Errorf("an extent that was discarded: fresh %v, %v", fresh, err)
	}
	if fresh, err := s.back(5); fresh || err != nil {
		t.Errorf("the same once more: fresh %v, %v", fresh, err)
	}
	if free, held := s.counts(); free != 2*largeLump-2 || held != 1 {
		t.Errorf("%d extents are free, %d held", free, held)
	}
	emulated.Set(t, "")
	r, err := s.room((2*largeLump - 2) * Extent)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.back(6); !errors.Is(err, errFull) {
		t.Errorf("memory that a region has now: got %v", err)
	}
	if err := s.release(&r); err != nil {
		t.Fatal(err)
	}
}

// TestSlabPromised: an extent that was discarded stays mapped while all memory is promised, and is somebody's afterwards.
func TestSlabPromised(t *testing.T) {
	s := slabOf(t, opened(t, 4), largeLump, false)
	if _, err := s.reserve(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.back(0); err != nil {
		t.Fatal(err)
	}
	s.discard([]int32{0})
	promised := s.spare
	s.spare = 0 // as while a region of that size takes its lumps
	for range 2 {
		if _, err := s.back(0); !errors.Is(err, errFull) {
			t.Errorf("memory that is promised: got %v", err)
		}
	}
	s.spare = promised
	r, err := s.room(int64(promised) * Extent)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.release(&r); err != nil {
		t.Fatal(err)
	}
}

// TestSlabKeepsCount takes and gives at random: what is free is what nobody has, and nobody has what another one has.
func TestSlabKeepsCount(t *testing.T) {
	b := opened(t, 4)
	for _, lazy := range []bool{false, true} {
		const most = 4*largeLump + 5
		s := slabOf(t, b, most, lazy)
		type held struct {
			region
			mark byte
		}
		var all []held
		kv, r := map[int32]bool{}, rand.New(rand.NewPCG(1, 2))
		if _, err := s.reserve(); err != nil {
			t.Fatal(err)
		}
		used, mark := 1, byte(0)
		check := func(h held) {
			for _, at := range []int64{0, int64(h.extents)*Extent - 64} {
				if err := errors.Join(b.stream.CopyOut(b.out.bytes[:64], h.at+kernels.Address(at)), b.stream.Synchronize()); err != nil {
					t.Fatal(err)
				}
				if b.out.bytes[0] != h.mark || b.out.bytes[63] != h.mark {
					t.Fatalf("a region of %d extents has what is another's", h.extents)
				}
			}
		}
		for range 400 {
			switch n := 1 + r.IntN(2*largeLump); r.IntN(4) {
			case 0, 1:
				got, err := s.room(int64(n) * Extent)
				if n > most-used {
					if !errors.Is(err, errFull) {
						t.Fatalf("%d extents where %d are free: got %v", n, most-used, err)
					}
					continue
				}
				if err != nil {
					t.Fatal(err)
				}
				mark++
				for _, at := range []int64{0, int64(n)*Extent - 64} {
					if err := b.stream.Fill(got.at+kernels.Address(at), mark, 64); err != nil {
						t.Fatal(err)
					}
				}
				all, used = append(all, held{got, mark}), used+n
			case 2:
				if len(all) == 0 {
					continue
				}
				i := r.IntN(len(all))
				check(all[i])
				used -= all[i].extents
				if err := s.release(&all[i].region); err != nil {
					t.Fatal(err)
				}
				all = append(all[:i], all[i+1:]...)
			case 3:
				e := int32(r.IntN(most))
				if kv[e] {
					s.discard([]int32{e})
					delete(kv, e)
					used--
				} else if used < most {
					if _, err := s.back(e); err != nil {
						t.Fatal(err)
					}
					kv[e], used = true, used+1
				}
			}
			if free, mapped := s.counts(); free != most-used || mapped != len(kv) {
				t.Fatalf("%d extents are free and %d behind KV extents, want %d and %d", free, mapped, most-used, len(kv))
			}
		}
		for _, h := range all {
			check(h)
			if err := s.release(&h.region); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestSlabLosesMemory: others may take memory while lumps are put together. That is an error of who asks for it then, and
// when it is back, all is as before.
func TestSlabLosesMemory(t *testing.T) {
	emulated.Set(t, "")
	s := slabOf(t, opened(t, 4), 2*largeLump, false)
	split, err := s.room((largeLump + 1) * Extent)
	if err != nil {
		t.Fatal(err)
	}
	rest, err := s.room((largeLump - 1) * Extent)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.release(&rest), s.release(&split)); err != nil {
		t.Fatal(err)
	}
	emulated.Set(t, "fail=create:1:2,fail=create:12:2,fail=create:13:2") // the large one, the 11th small one, and that again
	if _, err := s.room(2 * largeLump * Extent); err == nil || errors.Is(err, errFull) {
		t.Fatalf("memory that somebody else has: got %v", err)
	}
	if free, _ := s.counts(); free != 2*largeLump {
		t.Errorf("%d extents are free", free)
	}
	emulated.Set(t, "")
	all, err := s.room(2 * largeLump * Extent)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.release(&all); err != nil {
		t.Fatal(err)
	}
}
