// Kernels compiles kernels/cpu/c for each path of instructions and writes what comes out as Go
// assembly: position-independent bytes, with an entry for each kernel. It needs the clang that
// CLANG names. Run it by hack/kernels.sh.
//
// The first line of a C file says for which variants it is compiled: "// variants: avx2 avx512".
// A kernel is a global function of one pointer; everything else is static and inlined.
package main

import (
	"bytes"
	"cmp"
	"debug/elf"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
)

const folder = "kernels/cpu"

// variants by name: the flags that they are compiled with.
var variants = map[string][]string{
	"avx2":   {"-DPATH_AVX2", "-mavx2", "-mfma", "-mf16c"},
	"avx512": {"-DPATH_AVX512", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mfma", "-mf16c", "-mprefer-vector-width=512"},
	"bf16":   {"-DPATH_AVX512", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mavx512bf16", "-mfma", "-mf16c", "-mprefer-vector-width=512"},
	"amx":    {"-DPATH_AVX512", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mavx512bf16", "-mamx-tile", "-mamx-bf16", "-mfma", "-mf16c", "-mprefer-vector-width=512"},
}

// Stack is aligned to 8 where Go calls; what needs more aligns it. It is moved by the first instructions alone.
var flags = []string{
	"-O3", "-std=c23", "-ffreestanding", "-fno-builtin", "-fno-math-errno", "-ffp-contract=off", "-fPIC", "-fvisibility=hidden", "-fno-jump-tables", "-ffunction-sections",
	"-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-fomit-frame-pointer", "-mno-red-zone", "-mstack-alignment=8", "-mllvm", "-enable-shrink-wrap=false",
	"-fcf-protection=none", "-fno-ident", "-Wall", "-Werror", "-fstack-usage",
}

func main() {
	verify := flag.Bool("verify", false, "write nothing, and fail if anything would be written")
	flag.Parse()
	if err := run(cmp.Or(os.Getenv("CLANG"), "clang-19"), flag.Args(), *verify); err != nil {
		fmt.Fprintln(os.Stderr, "kernels:", err)
		os.Exit(1)
	}
}

// run makes what the named C files give, or all, in place of what such files gave.
func run(clang string, names []string, verify bool) error {
	var patterns []string
	for _, n := range names {
		patterns = append(patterns, "kernels_"+n+"_*")
	}
	if len(names) == 0 {
		sources, err := filepath.Glob(sourceOf("*"))
		if err != nil {
			return err
		}
		for _, s := range sources {
			names = append(names, strings.TrimSuffix(filepath.Base(s), ".c"))
		}
		patterns = []string{"kernels_*"}
	}
	files, err := generate(clang, names)
	if err != nil {
		return err
	}
	for _, p := range patterns {
		old, err := filepath.Glob(filepath.Join(folder, p))
		if err != nil {
			return err
		}
		for _, path := range old {
			if _, ok := files[path]; !ok {
				files[path] = nil
			}
		}
	}
	return settle(files, verify)
}

// settle writes the files that are otherwise than they should be, and removes those that should be nothing. To verify, it
// says which these are instead.
func settle(files map[string][]byte, verify bool) error {
	var wrong []string
	for _, path := range slices.Sorted(maps.Keys(files)) {
		want := files[path]
		is, err := os.ReadFile(path)
		if gone := errors.Is(err, os.ErrNotExist); gone && want == nil || err == nil && want != nil && bytes.Equal(is, want) {
			continue
		} else if err != nil && !gone {
			return err
		}
		switch {
		case verify:
			wrong = append(wrong, path)
		case want == nil:
			err = os.Remove(path)
		default:
			err = os.WriteFile(path, want, 0o644)
		}
		if !verify && err != nil {
			return err
		}
	}
	if len(wrong) > 0 {
		return fmt.Errorf("not what %s/c gives: %s; run make kernels", folder, strings.Join(wrong, " "))
	}
	return nil
}

// generate makes the Go files of C files, path -> text, a few at a time.
func generate(clang string, names []string) (map[string][]byte, error) {
	tmp, err := os.MkdirTemp("", "kernels")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	list := map[string][]string{} // file -> variants
	for _, name := range names {
		text, err := os.ReadFile(sourceOf(name))
		if err != nil {
			return nil, err
		}
		first, _, _ := strings.Cut(string(text), "\n")
		of, ok := strings.CutPrefix(first, "// variants: ")
		if !ok {
			return nil, fmt.Errorf("%s: the first line is no list of variants", sourceOf(name))
		}
		list[name] = strings.Fields(of)
	}

	var (
		files = map[string][]byte{}
		of    = map[string]map[string][]string{} // file -> kernel -> variants
		errs  []error
		mu    sync.Mutex
		all   sync.WaitGroup
		turn  = make(chan bool, runtime.GOMAXPROCS(0))
	)
	for name := range list {
		of[name] = map[string][]string{}
		for _, v := range list[name] {
			all.Go(func() {
				turn <- true
				kernels, err := compile(clang, tmp, sourceOf(name), v)
				<-turn
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					errs = append(errs, fmt.Errorf("%s for %s: %w", sourceOf(name), v, err))
				}
				files[fmt.Sprintf("%s/kernels_%s_%s_amd64.s", folder, name, v)] = assembly(v, kernels)
				for _, k := range kernels {
					of[name][k.name] = append(of[name][k.name], v)
				}
			})
		}
	}
	all.Wait()
	for name, kernels := range of {
		for _, variants := range kernels {
			slices.Sort(variants)
		}
		here, other, err := stubs(kernels)
		errs = append(errs, err)
		files[folder+"/kernels_"+name+"_amd64.go"], files[folder+"/kernels_"+name+"_other.go"] = here, other
	}
	return files, errors.Join(errs...)
}

func sourceOf(name string) string { return filepath.Join(folder, "c", name+".c") }

// compile makes the kernels of one C file for one variant, in the order of their names.
func compile(clang, tmp, source, variant string) ([]kernel, error) {
	machine, ok := variants[variant]
	if !ok {
		return nil, errors.New("no such variant")
	}
	object := filepath.Join(tmp, strings.TrimSuffix(filepath.Base(source), ".c")+"_"+variant+".o")
	c := exec.Command(clang, slices.Concat([]string{"--target=x86_64-linux-gnu", "-c", "-o", object}, flags, machine, []string{source})...)
	c.Stdout, c.Stderr = os.Stderr, os.Stderr
	if err := c.Run(); err != nil {
		return nil, fmt.Errorf("%s: %w", clang, err)
	}
	stacks, err := stackUsage(strings.TrimSuffix(object, ".o") + ".su")
	if err != nil {
		return nil, err
	}
	f, err := elf.Open(object)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	kernels, err := link(f, stacks)
	slices.SortFunc(kernels, func(a, b kernel) int { return strings.Compare(a.name, b.name) })
	return kernels, err
}

// stackUsage of each function, as clang tells it: "file:line:function	bytes	static".
func stackUsage(path string) (map[string]int, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	all := map[string]int{}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) != 3 || f[2] != "static" {
			return nil, fmt.Errorf("stack usage %q is not fixed", strings.TrimSpace(line))
		}
		n, err := strconv.Atoi(f[1])
		if err != nil {
			return nil, err
		}
		all[f[0][strings.LastIndexByte(f[0], ':')+1:]] = n
	}
	return all, nil
}
