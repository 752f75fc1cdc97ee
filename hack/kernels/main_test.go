package main

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// compiled is the kernels of a C file's text.
func compiled(t *testing.T, variant, text string) ([]kernel, error) {
	t.Helper()
	clang := cmp.Or(os.Getenv("CLANG"), "clang-19")
	if _, err := exec.LookPath(clang); err != nil {
		t.Skipf("%s is not here; hack/kernels.sh says where it comes from: %v", clang, err)
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "test.c")
	if err := os.WriteFile(path, []byte("#include <immintrin.h>\n#include <stdint.h>\n"+text), 0o600); err != nil {
		t.Fatal(err)
	}
	return compile(clang, dir, path, variant)
}

func TestKernels(t *testing.T) {
	kernels, err := compiled(t, "avx2", `
static const int64_t table[4] = {11, 22, 33, 44};
void second(int64_t *a) { a[0] = table[a[1]]; }
void first(int64_t *a) { a[0] = a[1]; }
void pushes(int64_t *a) { __asm__ volatile("" ::: "rbx", "r12", "memory"); a[0] = table[a[1] & 1]; }
void spills(int64_t *a) { a[0] = a[1]; __asm__ volatile("" ::: "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory"); a[2] = a[3]; }
`)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	of := map[string]kernel{}
	for _, k := range kernels {
		names = append(names, k.name)
		of[k.name] = k
	}
	if got := strings.Join(names, " "); got != "first pushes second spills" {
		t.Errorf("kernels %s", got)
	}
	if k := of["first"]; k.stack != 0 || len(k.code) > 16 {
		t.Errorf("first: %d bytes of stack, code %x", k.stack, k.code)
	}
	if k := of["pushes"]; k.stack != 16 {
		t.Errorf("pushes: %d bytes of stack", k.stack)
	}
	if k := of["spills"]; k.stack < 48 || k.stack > 64 {
		t.Errorf("spills: %d bytes of stack", k.stack)
	}
	// The table lies behind the code, and an address of the code says where.
	table := []byte{11, 0, 0, 0, 0, 0, 0, 0, 22, 0, 0, 0, 0, 0, 0, 0, 33, 0, 0, 0, 0, 0, 0, 0, 44, 0, 0, 0, 0, 0, 0, 0}
	for _, name := range []string{"second", "pushes"} {
		code := of[name].code
		at, found := bytes.Index(code, table[:16]), false
		for i := 0; at > 0 && i+4 <= at; i++ {
			found = found || i+4+int(int32(binary.LittleEndian.Uint32(code[i:]))) == at
		}
		if !found || at%64 != 0 {
			t.Errorf("%s: the table is at %d, and nothing refers to it: %x", name, at, code)
		}
	}

	text := string(assembly("avx2", kernels))
	for _, want := range []string{
		"TEXT ·first_avx2(SB), 0, $0-8\n\tMOVQ args+0(FP), DI\n\tLEAQ first_avx2_code<>+0(SB), AX\n\tCALL AX\n\tRET\n",
		"TEXT first_avx2_code<>(SB), NOSPLIT|NOFRAME, $0-0\n\tPCALIGN $64\n",
		"TEXT pushes_avx2_code<>(SB), NOSPLIT|NOFRAME, $0-0\n\tNO_LOCAL_POINTERS\n\tADJSP $16",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no\n%s\nin\n%s", want, text)
		}
	}
}

// TestRefused has what cannot be a kernel refused by name.
func TestRefused(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"int64_t n; void f(int64_t *a) { *a = n++; }", "neither code nor constants"},
		{"void g(int64_t *); void f(int64_t *a) { g(a); *a = 1; }", `"g" is called`},
		{"static __attribute__((noinline)) void g(int64_t *a) { *a = 1; } void f(int64_t *a) { g(a); g(a + 1); }", "not inlined"},
		{"static int64_t x, y; static const int64_t *const t[2] = {&x, &y}; void f(int64_t **a) { a[0] = (int64_t *)t[(int64_t)a[1]]; }", "neither code nor constants"},
		{"void f(int64_t *a) { volatile char b[*a]; b[3] = 1; *a = b[3]; }", "not fixed"},
		{"void f(int64_t *a) { volatile _Alignas(64) float b[16]; for (int i = 0; i < 16; i++) b[i] = a[i]; a[0] = b[a[1]]; }", "aligns its stack"},
		{"struct s { int64_t of[100]; }; void f(int64_t *a) { volatile struct s b; for (int i = 0; i < 100; i++) b.of[i] = a[i]; a[0] = b.of[a[1]]; }", "at most 792"},
		{"void f(char *a) { for (int i = 0; i < 100000; i++) a[i] = 0; __builtin_memcpy(a, a + 100000, 100000); }", "is called"},
	} {
		if _, err := compiled(t, "avx512", c.text); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s\n%v, want %q", c.text, err, c.want)
		}
	}
}
