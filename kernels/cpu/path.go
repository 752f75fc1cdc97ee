package cpu

import (
	"fmt"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/cpu"
)

// Path is a set of kernels, by the instructions that they use.
type Path uint8

// The paths. AMX is AVX512, and AMX's tiles where many rows are multiplied.
const (
	PlainGo Path = iota
	AVX2
	AVX512
	AMX
)

var pathNames = []string{"go", "avx2", "avx512", "amx"}

func (p Path) String() string { return pathNames[p] }

// ParsePath finds a path by its name.
func ParsePath(name string) (Path, error) {
	for i, n := range pathNames {
		if n == name {
			return Path(i), nil
		}
	}
	return PlainGo, fmt.Errorf("no path of instructions is called %q; there are %s", name, strings.Join(pathNames, ", "))
}

// Available are the paths that this machine can run, the best first; PlainGo is the last.
func Available() []Path {
	all := []Path{PlainGo}
	x := &cpu.X86
	if !x.HasAVX2 || !x.HasFMA || !x.HasF16C {
		return all
	}
	all = append([]Path{AVX2}, all...)
	if !x.HasAVX512F || !x.HasAVX512BW || !x.HasAVX512VL || !x.HasAVX512DQ || !x.HasAVX512VNNI {
		return all
	}
	all = append([]Path{AVX512}, all...)
	if x.HasAMXTile && x.HasAMXBF16 && x.HasAVX512BF16 && tilesAllowed() && tilesWork() {
		all = append([]Path{AMX}, all...)
	}
	return all
}

// PathVariable is the environment variable that forces a path.
const PathVariable = "ESTIBA_CPU"

// Best is the path to take: the first that is available, or what ESTIBA_CPU names.
func Best() (Path, error) {
	all := Available()
	name := os.Getenv(PathVariable)
	if name == "" {
		return all[0], nil
	}
	p, err := ParsePath(name)
	if err != nil {
		return PlainGo, fmt.Errorf("%s: %w", PathVariable, err)
	}
	var names []string
	for _, a := range all {
		if a == p {
			return p, nil
		}
		names = append(names, a.String())
	}
	return PlainGo, fmt.Errorf("%s: this machine cannot run path %s; it can run %s", PathVariable, p, strings.Join(names, ", "))
}

// tilesAllowed asks the system for the tile registers, once.
var tilesAllowed = sync.OnceValue(requestTiles)
