package main

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// kernel is one function of an object, with the constants that it uses behind it.
type kernel struct {
	name  string
	code  []byte
	stack int // bytes that it uses below its return address
}

// mostStack is what Go's linker allows a function that does not ask for its stack: 800 bytes, less an address.
const mostStack = 792

// link makes the kernels of an object: each is its function, and what it refers to behind it.
func link(f *elf.File, stacks map[string]int) ([]kernel, error) {
	symbols, err := f.Symbols()
	if err != nil {
		return nil, err
	}
	for _, s := range f.Sections {
		if s.Flags&elf.SHF_ALLOC != 0 && s.Size > 0 && !strings.HasPrefix(s.Name, ".text") && !strings.HasPrefix(s.Name, ".rodata") {
			return nil, fmt.Errorf("section %s is neither code nor constants", s.Name)
		}
	}
	var all []kernel
	for _, s := range symbols {
		if elf.ST_TYPE(s.Info) != elf.STT_FUNC {
			continue
		}
		if elf.ST_BIND(s.Info) != elf.STB_GLOBAL {
			return nil, fmt.Errorf("%s is not inlined", s.Name)
		}
		if s.Value != 0 {
			return nil, fmt.Errorf("%s shares its section", s.Name)
		}
		k := kernel{name: s.Name}
		if err := k.place(f, symbols, s.Section); err != nil {
			return nil, fmt.Errorf("%s: %w", s.Name, err)
		}
		var aligns bool
		k.stack, aligns = prologue(k.code)
		switch told, ok := stacks[s.Name]; {
		case !ok:
			return nil, fmt.Errorf("%s: nothing says how much stack it uses", s.Name)
		case aligns:
			return nil, fmt.Errorf("%s aligns its stack, so nothing could say where its caller's is; have no arrays there", s.Name)
		case k.stack != told:
			return nil, fmt.Errorf("%s: its first instructions take %d bytes of stack, not %d", s.Name, k.stack, told)
		case k.stack > mostStack:
			return nil, fmt.Errorf("%s uses %d bytes of stack; have it use at most %d", s.Name, k.stack, mostStack)
		}
		all = append(all, k)
	}
	return all, nil
}

// place lays the code of one section down, and behind it each section of constants that it refers to, once.
func (k *kernel) place(f *elf.File, symbols []elf.Symbol, code elf.SectionIndex) error {
	at := map[elf.SectionIndex]int{}
	add := func(i elf.SectionIndex) error {
		data, err := f.Sections[i].Data()
		if err != nil {
			return err
		}
		for len(k.code)%64 != 0 {
			k.code = append(k.code, 0xcc)
		}
		at[i] = len(k.code)
		k.code = append(k.code, data...)
		return nil
	}
	if err := add(code); err != nil {
		return err
	}
	for _, s := range f.Sections {
		if s.Type != elf.SHT_RELA || f.Sections[s.Info].Flags&elf.SHF_ALLOC == 0 {
			continue
		}
		if strings.HasPrefix(f.Sections[s.Info].Name, ".rodata") {
			return errors.New("a constant has an address in it")
		}
		if elf.SectionIndex(s.Info) != code {
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
			to, kind := symbols[r.Info>>32-1], elf.R_X86_64(uint32(r.Info))
			if elf.ST_TYPE(to.Info) == elf.STT_FUNC || to.Section == elf.SHN_UNDEF {
				return fmt.Errorf("%q is called, not inlined", to.Name)
			}
			if kind != elf.R_X86_64_PC32 && kind != elf.R_X86_64_PLT32 || int(to.Section) >= len(f.Sections) {
				return fmt.Errorf("a reference %v to %q cannot be resolved", kind, to.Name)
			}
			if _, ok := at[to.Section]; !ok {
				if err := add(to.Section); err != nil {
					return err
				}
			}
			binary.LittleEndian.PutUint32(k.code[r.Off:], uint32(at[to.Section]+int(to.Value)+int(r.Addend)-int(r.Off)))
		}
	}
	return nil
}

// prologue reads the first instructions of a function, which say how much stack it uses, and whether it aligns it.
func prologue(code []byte) (stack int, aligns bool) {
	for {
		switch c := code; {
		case c[0] >= 0x50 && c[0] <= 0x57: // PUSHQ
			stack, code = stack+8, c[1:]
		case c[0] == 0x41 && c[1] >= 0x50 && c[1] <= 0x57: // PUSHQ R8 to R15
			stack, code = stack+8, c[2:]
		case bytes.HasPrefix(c, []byte{0x48, 0x89, 0xe5}): // MOVQ SP, BP
			code = c[3:]
		case bytes.HasPrefix(c, []byte{0x48, 0x83, 0xec}): // SUBQ $imm8, SP
			return stack + int(int8(c[3])), false
		case bytes.HasPrefix(c, []byte{0x48, 0x81, 0xec}): // SUBQ $imm32, SP
			return stack + int(int32(binary.LittleEndian.Uint32(c[3:]))), false
		case bytes.HasPrefix(c, []byte{0x48, 0x83, 0xe4}), bytes.HasPrefix(c, []byte{0x48, 0x81, 0xe4}): // ANDQ $imm, SP
			return stack, true
		default:
			return stack, false
		}
	}
}
