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
	"encoding/binary"
	"errors"
	"fmt"
	"go/format"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

const folder = "kernels/cpu"

// variants by name: the flags that they are compiled with.
var variants = map[string][]string{
	"avx2":   {"-DPATH_AVX2", "-mavx2", "-mfma", "-mf16c"},
	"avx512": {"-DPATH_AVX512", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mfma", "-mf16c", "-mprefer-vector-width=512"},
	"bf16":   {"-DPATH_AVX512", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mavx512bf16", "-mfma", "-mf16c", "-mprefer-vector-width=512"},
	"amx":    {"-DPATH_AVX512", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mavx512bf16", "-mamx-tile", "-mamx-bf16", "-mfma", "-mf16c", "-mprefer-vector-width=512"},
}

var flags = []string{
	"-O3", "-std=c23", "-ffreestanding", "-fno-builtin", "-fno-math-errno", "-ffp-contract=off", "-fPIC", "-fvisibility=hidden", "-fno-jump-tables",
	"-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-fomit-frame-pointer", "-mno-red-zone", "-fcf-protection=none", "-fno-ident", "-Wall", "-Werror", "-fstack-usage",
}

// blob is one C file compiled for one variant.
type blob struct {
	name    string // of the file, without ending
	variant string
	code    []byte
	entries map[string]entry
}

type entry struct{ offset, stack int }

func main() {
	if err := run(cmp.Or(os.Getenv("CLANG"), "clang-19"), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "kernels:", err)
		os.Exit(1)
	}
}

// run makes what the named C files give, or all; what is left of files that are gone is removed.
func run(clang string, names []string) error {
	if len(names) == 0 {
		sources, err := filepath.Glob(folder + "/c/*.c")
		if err != nil {
			return err
		}
		for _, s := range sources {
			names = append(names, strings.TrimSuffix(filepath.Base(s), ".c"))
		}
		if err := remove(folder + "/kernels_*"); err != nil {
			return err
		}
	}
	tmp, err := os.MkdirTemp("", "kernels")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	for _, name := range names {
		if err := source(clang, tmp, name); err != nil {
			return err
		}
	}
	return nil
}

// source makes the Go files of one C file.
func source(clang, tmp, name string) error {
	path := filepath.Join(folder, "c", name+".c")
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	first, _, _ := strings.Cut(string(text), "\n")
	list, ok := strings.CutPrefix(first, "// variants: ")
	if !ok {
		return fmt.Errorf("%s: the first line is no list of variants", path)
	}
	var blobs []blob
	for _, v := range strings.Fields(list) {
		b, err := compile(clang, tmp, path, v)
		if err != nil {
			return fmt.Errorf("%s for %s: %w", path, v, err)
		}
		blobs = append(blobs, b)
	}
	if err := remove(folder + "/kernels_" + name + "_*"); err != nil {
		return err
	}
	for _, b := range blobs {
		if err := b.assembly(); err != nil {
			return err
		}
	}
	return stubs(name, blobs)
}

func remove(pattern string) error {
	old, err := filepath.Glob(pattern)
	if err != nil {
		return err
	}
	for _, f := range old {
		if err := os.Remove(f); err != nil {
			return err
		}
	}
	return nil
}

func compile(clang, tmp, source, variant string) (blob, error) {
	machine, ok := variants[variant]
	if !ok {
		return blob{}, errors.New("no such variant")
	}
	b := blob{name: strings.TrimSuffix(filepath.Base(source), ".c"), variant: variant}
	object := filepath.Join(tmp, b.name+"_"+variant+".o")
	c := exec.Command(clang, slices.Concat([]string{"--target=x86_64-linux-gnu", "-c", "-o", object}, flags, machine, []string{source})...)
	c.Stdout, c.Stderr = os.Stderr, os.Stderr
	if err := c.Run(); err != nil {
		return b, fmt.Errorf("%s: %w", clang, err)
	}
	stacks, err := stackUsage(strings.TrimSuffix(object, ".o") + ".su")
	if err != nil {
		return b, err
	}
	return b, b.link(object, stacks)
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
		if len(f) < 3 {
			return nil, fmt.Errorf("stack usage %q", line)
		}
		n, err := strconv.Atoi(f[1])
		if err != nil {
			return nil, err
		}
		all[f[0][strings.LastIndexByte(f[0], ':')+1:]] = n
	}
	return all, nil
}

// link lays the sections of an object one after the other, code first, and resolves the
// references between them.
func (b *blob) link(object string, stacks map[string]int) error {
	f, err := elf.Open(object)
	if err != nil {
		return err
	}
	defer f.Close()
	at := map[elf.SectionIndex]int{}
	place := func(prefix string) error {
		for i, s := range f.Sections {
			if s.Flags&elf.SHF_ALLOC == 0 || s.Size == 0 || !strings.HasPrefix(s.Name, prefix) {
				continue
			}
			data, err := s.Data()
			if err != nil {
				return err
			}
			for len(b.code)%64 != 0 {
				b.code = append(b.code, 0xcc)
			}
			at[elf.SectionIndex(i)] = len(b.code)
			b.code = append(b.code, data...)
		}
		return nil
	}
	if err := errors.Join(place(".text"), place(".rodata")); err != nil {
		return err
	}
	for i, s := range f.Sections {
		if _, ok := at[elf.SectionIndex(i)]; !ok && s.Flags&elf.SHF_ALLOC != 0 && s.Size > 0 {
			return fmt.Errorf("section %s is neither code nor constants", s.Name)
		}
	}
	symbols, err := f.Symbols()
	if err != nil {
		return err
	}
	b.entries = map[string]entry{}
	for _, s := range symbols {
		if elf.ST_TYPE(s.Info) == elf.STT_FUNC && elf.ST_BIND(s.Info) == elf.STB_GLOBAL {
			stack, ok := stacks[s.Name]
			if !ok {
				return fmt.Errorf("%s: no stack usage", s.Name)
			}
			b.entries[s.Name] = entry{at[s.Section] + int(s.Value), stack}
		} else if elf.ST_TYPE(s.Info) == elf.STT_FUNC {
			return fmt.Errorf("%s is not inlined", s.Name)
		}
	}
	for _, s := range f.Sections {
		base, ok := at[elf.SectionIndex(s.Info)]
		if s.Type != elf.SHT_RELA || !ok {
			continue
		}
		data, err := s.Data()
		if err != nil {
			return err
		}
		var r elf.Rela64
		for in := bytes.NewReader(data); in.Len() > 0; {
			if err := binary.Read(in, binary.LittleEndian, &r); err != nil {
				return err
			}
			symbol, kind := symbols[r.Info>>32-1], elf.R_X86_64(uint32(r.Info))
			target, ok := at[symbol.Section]
			if kind != elf.R_X86_64_PC32 && kind != elf.R_X86_64_PLT32 || !ok {
				return fmt.Errorf("a reference %v to %q cannot be resolved", kind, symbol.Name)
			}
			if elf.ST_TYPE(symbol.Info) == elf.STT_FUNC {
				return fmt.Errorf("%s is called, not inlined", symbol.Name)
			}
			where := base + int(r.Off)
			binary.LittleEndian.PutUint32(b.code[where:], uint32(target+int(symbol.Value)+int(r.Addend)-where))
		}
	}
	return nil
}

const header = "// Code generated by hack/kernels.sh from kernels/cpu/c. DO NOT EDIT.\n\n"

// assembly writes the bytes of a blob, and an entry for each of its kernels.
func (b *blob) assembly() error {
	var w bytes.Buffer
	w.WriteString(header + "#include \"textflag.h\"\n")
	code := fmt.Sprintf("%s_%s<>", b.name, b.variant)
	for _, name := range slices.Sorted(maps.Keys(b.entries)) {
		e := b.entries[name]
		// A kernel that uses no stack runs below the frame of its entry, so that the
		// stack can be walked from a fault in it. For others the frame is their stack.
		frame, move, back := 0, "", ""
		if e.stack > 8 {
			frame = (e.stack+8+64+16+15)/16*16 + 8
			move = fmt.Sprintf("\tMOVQ SP, BX\n\tLEAQ %d(SP), SP\n\tANDQ $~63, SP\n", frame-8)
			back = "\tMOVQ BX, SP\n"
		}
		fmt.Fprintf(&w, `
// func %[1]s_%[2]s(args unsafe.Pointer)
TEXT ·%[1]s_%[2]s(SB), 0, $%[3]d-8
	MOVQ args+0(FP), DI
%[4]s	LEAQ %[5]s(SB), AX
	ADDQ $%[6]d, AX
	CALL AX
%[7]s	RET
`, name, b.variant, frame, move, code, e.offset, back)
	}
	fmt.Fprintf(&w, "\nTEXT %s(SB), NOSPLIT|NOFRAME, $0-0\n\tPCALIGN $64\n", code)
	for len(b.code)%8 != 0 {
		b.code = append(b.code, 0xcc)
	}
	for i := 0; i < len(b.code); i += 8 {
		switch {
		case i%32 == 0:
			w.WriteString("\t")
		default:
			w.WriteString("; ")
		}
		fmt.Fprintf(&w, "QUAD $0x%016x", binary.LittleEndian.Uint64(b.code[i:]))
		if i%32 == 24 || i+8 == len(b.code) {
			w.WriteString("\n")
		}
	}
	return os.WriteFile(fmt.Sprintf("%s/kernels_%s_%s_amd64.s", folder, b.name, b.variant), w.Bytes(), 0o644)
}

// stubs declares the kernels, and chooses between those that are there for two paths.
func stubs(file string, blobs []blob) error {
	of := map[string][]string{} // kernel -> variants
	for _, b := range blobs {
		for name := range b.entries {
			of[name] = append(of[name], b.variant)
		}
	}
	var here, other bytes.Buffer
	here.WriteString(header + "package cpu\n\nimport \"unsafe\"\n")
	other.WriteString(header + "//go:build !amd64\n\npackage cpu\n\nimport \"unsafe\"\n")
	word := regexp.MustCompile(`^[a-z][A-Za-z0-9]*$`)
	for _, name := range slices.Sorted(maps.Keys(of)) {
		if !word.MatchString(name) {
			return fmt.Errorf("kernel %s: its name is no word in camel case", name)
		}
		for _, v := range of[name] {
			fmt.Fprintf(&here, "\n//go:noescape\nfunc %s_%s(args unsafe.Pointer)\n", name, v)
		}
		fmt.Fprintf(&other, "\nfunc %s(Path, unsafe.Pointer) { panic(\"cpu: no kernel\") }\n", name)
		fmt.Fprintf(&here, "\nfunc %s(p Path, args unsafe.Pointer) {\n", name)
		if slices.Equal(of[name], []string{"avx2", "avx512"}) {
			fmt.Fprintf(&here, "if p == AVX2 {\n%[1]s_avx2(args)\nreturn\n}\n%[1]s_avx512(args)\n}\n", name)
		} else if len(of[name]) == 1 {
			fmt.Fprintf(&here, "%s_%s(args)\n}\n", name, of[name][0])
		} else {
			return fmt.Errorf("kernel %s: no rule chooses between %v", name, of[name])
		}
	}
	for path, b := range map[string]*bytes.Buffer{"kernels_" + file + "_amd64.go": &here, "kernels_" + file + "_other.go": &other} {
		text, err := format.Source(b.Bytes())
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(folder, path), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}
