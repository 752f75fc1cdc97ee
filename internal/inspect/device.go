package inspect

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"text/tabwriter"

	"golang.org/x/sys/cpu"

	kernels "github.com/estiba/estiba/kernels/cpu"
	"github.com/estiba/estiba/runtime/backend/cuda"
	"github.com/estiba/estiba/runtime/device"
	"github.com/estiba/estiba/runtime/residency"
)

// DeviceResult is what the command prints of the machine's own processor; its JSON is a contract.
type DeviceResult struct {
	Device       string   `json:"device"`
	CPU          string   `json:"cpu"`          // as the machine names it
	Instructions []string `json:"instructions"` // that kernels use and this CPU has
	Path         string   `json:"path"`         // of the kernels, which computes here
	PathReason   string   `json:"path_reason"`
	Paths        []string `json:"paths"` // that this CPU can run, the best first
	// Lacking says of every other path which instructions the CPU has not.
	Lacking       map[string][]string `json:"lacking"`
	Threads       int                 `json:"threads"` // that compute
	ThreadsReason string              `json:"threads_reason"`
	CPUQuota      float64             `json:"cpu_quota,omitzero"` // of the control group, in processors: 1.5; left out where there is none
	Memory        Memory              `json:"memory"`
	// Accelerators are the GPUs that this process may compute on, and AcceleratorsReason why there are none.
	Accelerators       []Accelerator `json:"accelerators"`
	AcceleratorsReason string        `json:"accelerators_reason,omitempty"`
}

// Accelerator is a GPU.
type Accelerator struct {
	Device      string `json:"device"`       // as --device and reports name it
	UUID        string `json:"uuid"`         // as NVML names it
	Description string `json:"description"`  // its maker's name for it, and from what the next is reckoned
	ModelsBytes int64  `json:"models_bytes"` // that a worker may fill with models, before headroom
}

func (a Accelerator) String() string {
	return fmt.Sprintf("%s: %s; %s for models, of which a worker keeps %d %% free if its pool says nothing else", a.Device, a.Description, residency.Bytes(a.ModelsBytes), headroom)
}

// Memory of the machine, in bytes.
type Memory struct {
	TotalBytes     int64 `json:"total_bytes"`
	AvailableBytes int64 `json:"available_bytes"`
	LimitBytes     int64 `json:"limit_bytes"`  // of the control group; 0: none
	ModelsBytes    int64 `json:"models_bytes"` // that a worker may fill with models, before headroom
}

// instruction that some path needs.
type instruction struct {
	name string
	has  bool
	path kernels.Path // the first one that needs it
}

// instructions by their names in Linux's /proc/cpuinfo, and what each path needs beside
// those of the path before it. Kernels have the same list, as conditions.
var instructions = []instruction{
	{"avx2", cpu.X86.HasAVX2, kernels.AVX2},
	{"fma", cpu.X86.HasFMA, kernels.AVX2},
	{"f16c", cpu.X86.HasF16C, kernels.AVX2},
	{"avx512f", cpu.X86.HasAVX512F, kernels.AVX512},
	{"avx512bw", cpu.X86.HasAVX512BW, kernels.AVX512},
	{"avx512vl", cpu.X86.HasAVX512VL, kernels.AVX512},
	{"avx512dq", cpu.X86.HasAVX512DQ, kernels.AVX512},
	{"avx512_vnni", cpu.X86.HasAVX512VNNI, kernels.AVX512},
	{"avx512_bf16", cpu.X86.HasAVX512BF16, kernels.AMX}, // avx512 uses it where it is
	{"amx_tile", cpu.X86.HasAMXTile, kernels.AMX},
	{"amx_bf16", cpu.X86.HasAMXBF16, kernels.AMX},
}

// ofThisMachine are the instructions that its kind of processor may have.
func ofThisMachine() []instruction {
	if runtime.GOARCH != "amd64" {
		return nil
	}
	return instructions
}

// accelerators of this machine.
func accelerators(r *DeviceResult) {
	r.Accelerators = []Accelerator{}
	all, err := cuda.Devices(device.Options{})
	if err != nil {
		r.AcceleratorsReason = err.Error()
		return
	}
	for _, d := range all {
		r.Accelerators = append(r.Accelerators, Accelerator{d.Name, d.UUID, strings.TrimSuffix(d.Description, ", 0 % headroom"), d.Capacity})
	}
}

// RunDevice writes what this machine's processor is and how it would be used to out, and which GPUs there are.
func RunDevice(out io.Writer, o Options) error {
	r, err := processor()
	if err != nil {
		return err
	}
	accelerators(&r)
	if o.JSON {
		return json.NewEncoder(out).Encode(r)
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, row := range [][2]string{
		{"Device", r.Device},
		{"CPU", r.CPU},
		{"Instructions", strings.Join(r.Instructions, " ")},
		{"Path", fmt.Sprintf("%s: %s", r.Path, r.PathReason)},
		{"Threads", fmt.Sprintf("%d: %s", r.Threads, r.ThreadsReason)},
		{"Memory", r.Memory.String()},
	} {
		fmt.Fprintf(w, "%s:\t%s\n", row[0], row[1])
	}
	for _, a := range r.Accelerators {
		fmt.Fprintf(w, "GPU:\t%s\n", a)
	}
	if r.AcceleratorsReason != "" {
		fmt.Fprintf(w, "GPU:\t%s\n", r.AcceleratorsReason)
	}
	return w.Flush()
}

func processor() (DeviceResult, error) {
	best, err := kernels.Best()
	if err != nil {
		return DeviceResult{}, err
	}
	r := DeviceResult{
		Device: "cpu-0", CPU: device.Processor(nil), Instructions: []string{}, Path: best.String(),
		Lacking: map[string][]string{}, Threads: device.Processors(nil),
	}
	r.CPUQuota, _ = device.Quota(nil)
	r.ThreadsReason = threadsReason(r.Threads, r.CPUQuota)
	for _, p := range kernels.Available() {
		r.Paths = append(r.Paths, p.String())
	}
	var lacking []string
	for _, i := range ofThisMachine() {
		if i.has {
			r.Instructions = append(r.Instructions, i.name)
			continue
		}
		lacking = append(lacking, i.name)
		for p := i.path; p <= kernels.AMX; p++ {
			r.Lacking[p.String()] = append(r.Lacking[p.String()], i.name)
		}
	}
	switch forced := os.Getenv(kernels.PathVariable); {
	case forced != "":
		r.PathReason = fmt.Sprintf("%s names it; this CPU can run %s", kernels.PathVariable, strings.Join(r.Paths, ", "))
	case len(lacking) > 0:
		r.PathReason = fmt.Sprintf("the best that this CPU can run (%s); it lacks %s", strings.Join(r.Paths, ", "), strings.Join(lacking, ", "))
	default:
		r.PathReason = fmt.Sprintf("the best that this CPU can run (%s)", strings.Join(r.Paths, ", "))
	}
	r.Memory, err = memory()
	return r, err
}

func memory() (m Memory, err error) {
	if m.TotalBytes, m.AvailableBytes, m.LimitBytes, err = device.Memory(nil); err != nil {
		return Memory{}, fmt.Errorf("find out how much memory there is: %w", err)
	}
	d, err := device.CPU(device.Options{})
	m.ModelsBytes = d.Capacity
	return m, err
}

func (m Memory) String() string {
	s := fmt.Sprintf("%s, of which %s can be had", residency.Bytes(m.TotalBytes), residency.Bytes(m.AvailableBytes))
	if m.LimitBytes > 0 {
		s += fmt.Sprintf("; the control group may have %s", residency.Bytes(m.LimitBytes))
	}
	return fmt.Sprintf("%s; a worker without --memory takes %s for models", s, residency.Bytes(m.ModelsBytes))
}

// threadsReason says where n threads come from; quota is that of the control group, 0 for none.
func threadsReason(n int, quota float64) string {
	said := ""
	if quota > 0 {
		said = fmt.Sprintf("; the control group's CPU quota is %.4g processors", quota)
	}
	cores := fmt.Sprintf("this process may use %d processors", runtime.NumCPU())
	switch {
	case n == runtime.NumCPU():
		return "one for each processor that this process may use" + said
	case n == runtime.GOMAXPROCS(0) && os.Getenv("GOMAXPROCS") != "":
		return "GOMAXPROCS says so; " + cores + said
	case quota == 0: // Go has read one that is gone, or nobody has a name for it
		return "as many as Go computes with; " + cores
	}
	return fmt.Sprintf("what the control group's CPU quota of %.4g processors gives; %s", quota, cores)
}
