// Package device reads which devices a worker has, how much of each it may claim, and how
// they are: the processor (CPU), and accelerators through a Monitor: NVML's or Emulated ones.
package device

import (
	"bufio"
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"

	"github.com/estiba/estiba/runtime/residency"
)

// Device is one device of a worker. Capacity, in bytes, is the claim less
// headroom: what models may use. It is a whole number of extents.
type Device struct {
	Name        string
	Kind        string
	Description string
	Extent      int64
	Capacity    int64
	// UUID is what a Monitor knows the device by; empty: it knows nothing of it.
	UUID string
	// Lost: it did not answer when it was to be claimed. Nothing can be put on it, and Capacity is what it should have.
	Lost bool
	// Missing: there is none, though there should be. It is Lost, and has no Capacity.
	Missing bool
}

// Options bound the claim.
type Options struct {
	Memory   int64 // bytes that models may use, before headroom; 0: as much as the host allows
	Expected int64 // the same where it was said of machines not seen yet: they may have less
	Headroom int   // per cent of the claim that stays free
	// Host is the root folder of the machine; nil means the real one.
	Host fs.FS
}

// Extents: small ones where a device is small, or the rounding would eat it.
const (
	smallExtent = 64 << 10
	largeExtent = 2 << 20
	largeDevice = 1 << 30
)

// overheadBytes is what the process needs for itself beside the models:
// the heap, requests in flight, tokenizers.
const overheadBytes = 96 << 20

// CPU is the processor with the memory that this process may use: Memory if
// given, else the control group's limit, else 80 % of what is available. What
// strangers hold bounds all of them: a control group's limit, less what its other
// processes hold and the process's own overhead; or what is available on the machine.
// More Memory than the machine or the control group has is an error.
func CPU(o Options) (Device, error) {
	host := o.Host
	if host == nil {
		host = os.DirFS("/")
	}
	claim, from := o.Memory, "as asked for"
	limit, group, limited := cgroupLimit(host)
	if limited && claim > limit {
		return Device{}, fmt.Errorf("%s of memory are asked for, but the control group of this process may have %s; ask for less", residency.Bytes(claim), residency.Bytes(limit))
	}
	if all, err := meminfo(host, "MemTotal"); err == nil && claim > all {
		return Device{}, fmt.Errorf("%s of memory are asked for, but this machine has %s; ask for less", residency.Bytes(claim), residency.Bytes(all))
	}
	if o.Expected > 0 && claim == 0 {
		claim, from = o.Expected, "as expected"
		if all, err := meminfo(host, "MemTotal"); err == nil && claim > all {
			claim = 0 // as if nothing had been said
		}
	}
	available, err := meminfo(host, "MemAvailable") // the kernel's estimate of what can be had without swapping
	switch {
	case limited:
		others := strangers(host, group)
		if room := Room(limit) - others; claim == 0 || room < claim {
			claim, from = room, "limit of the control group less overhead"
			if others > 0 {
				from = fmt.Sprintf("%s and %s that other processes hold", from, residency.Bytes(others))
			}
		}
	case claim == 0 && err != nil:
		return Device{}, fmt.Errorf("find out how much memory there is: %w; say it with --memory", err)
	case claim == 0:
		claim, from = available/5*4, "80 % of the memory available"
	case err == nil && available < claim:
		claim, from = available, fmt.Sprintf("%s, less %s that other processes hold", from, residency.Bytes(claim-available))
	}
	extent := int64(smallExtent)
	if claim >= largeDevice {
		extent = largeExtent
	}
	claim -= claim / 100 * int64(o.Headroom)
	d := Device{
		Name: "cpu-0", Kind: "cpu", Extent: extent, Capacity: claim / extent * extent,
		Description: fmt.Sprintf("%s, %d %% headroom", from, o.Headroom),
	}
	if d.Capacity == 0 {
		return Device{}, fmt.Errorf("%d bytes (%s) leave no room for a model; give more memory", claim, from)
	}
	return d, nil
}

// Room is what a limit of a process's memory leaves for models, before headroom.
func Room(limit int64) int64 { return limit - min(overheadBytes, limit/4) }

// strangers is what other processes of a control group hold, of which nothing can be had
// by dropping caches: its anonymous memory less this process's.
func strangers(host fs.FS, group string) int64 {
	stat, err := fs.ReadFile(host, path.Join(group, "memory.stat"))
	if err != nil {
		return 0
	}
	all := int64(0)
	for line := range strings.Lines(string(stat)) {
		// "anon 123" of version 2, "total_rss 123" of version 1
		if name, n, _ := strings.Cut(strings.TrimSpace(line), " "); name == "anon" || name == "total_rss" {
			all, _ = strconv.ParseInt(n, 10, 64) // 0 if it is no number
		}
	}
	own, err := kernelFigure(host, "proc/self/status", "RssAnon")
	if err != nil {
		return 0
	}
	return max(all-own, 0)
}

// cgroupLimit is the smallest memory limit of this process's control groups,
// version 2 or 1, and the folder of that group; false if there is none.
func cgroupLimit(host fs.FS) (least int64, group string, found bool) {
	eachCgroup(host, "memory", func(version int, dir string) {
		file := "memory.max"
		if version == 1 {
			file = "memory.limit_in_bytes"
		}
		if n, ok := readLimit(host, path.Join(dir, file)); ok && (!found || n < least) {
			least, group, found = n, dir, true
		}
	})
	return least, group, found
}

// readLimit reads a limit; "max", and version 1's almost endless number, are none.
func readLimit(host fs.FS, name string) (int64, bool) {
	b, err := fs.ReadFile(host, name)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseInt(string(bytes.TrimSpace(b)), 10, 64)
	if err != nil || n <= 0 || n >= 1<<60 {
		return 0, false
	}
	return n, true
}

// meminfo reads one of the machine's figures, in bytes.
func meminfo(host fs.FS, name string) (int64, error) {
	return kernelFigure(host, "proc/meminfo", name)
}

// kernelFigure reads "NAME: N kB" from a file of the kernel, in bytes.
func kernelFigure(host fs.FS, file, name string) (int64, error) {
	f, err := host.Open(file)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		rest, ok := strings.CutPrefix(lines.Text(), name+":")
		if !ok {
			continue
		}
		kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/%s: %s: %w", file, name, err)
		}
		return kib << 10, nil
	}
	return 0, fmt.Errorf("/%s has no %s", file, name)
}
