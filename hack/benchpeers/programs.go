package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// The two programs.
const (
	estiba   = "Estiba"
	llamaCPP = "llama.cpp"
)

// program is a command that has not been started.
type program struct{ *exec.Cmd }

func ours(ctx context.Context, args ...string) program {
	return program{exec.CommandContext(ctx, "bin/estiba", args...)}
}

// llama is one of llama.cpp's tools, in the root that it was unpacked in: with libraries
// of its own it does not matter which the machine has.
func llama(ctx context.Context, root, tool string, args ...string) program {
	words := append([]string{"chroot", root, "/usr/bin/llama-" + tool}, args...)
	if os.Geteuid() != 0 {
		words = append([]string{"unshare", "--map-root-user"}, words...)
	}
	return program{exec.CommandContext(ctx, words[0], words[1:]...)}
}

// in starts the command within a control group.
func (p program) in(group string) program {
	p.Args = append([]string{"sh", "-c", `echo $$ >"$0"/cgroup.procs && exec "$@"`, group}, p.Args...)
	p.Path, p.Err = "/bin/sh", nil
	return p
}

// output runs the command to its end.
func (p program) output() ([]byte, error) {
	var stdout, stderr bytes.Buffer
	p.Stdout, p.Stderr = &stdout, &stderr
	err := p.Run()
	return stdout.Bytes(), p.failed(err, stderr.String())
}

// failed says what a command said last.
func (p program) failed(err error, stderr string) error {
	if err == nil {
		return nil
	}
	lines := strings.Split(strings.TrimSpace(stderr), "\n")
	return fmt.Errorf("%s: %w: %s", strings.Join(p.Args, " "), err, lines[len(lines)-1])
}

// versions of both.
func (s *session) versions(ctx context.Context) (string, error) {
	own, err := ours(ctx, "version").output()
	if err != nil {
		return "", err
	}
	device, err := ours(ctx, "inspect", "--device", "--json").output()
	if err != nil {
		return "", err
	}
	var kernels struct {
		Path string `json:"path"`
	}
	if err := json.Unmarshal(device, &kernels); err != nil {
		return "", err
	}
	p := llama(ctx, s.root, "bench", "--version")
	text, err := p.CombinedOutput()
	if err != nil {
		return "", p.failed(err, string(text))
	}
	peer := regexp.MustCompile(`version: (\S+ \(build \d+)`).FindSubmatch(text)
	if peer == nil {
		return "", fmt.Errorf("llama-bench --version says %q", text)
	}
	commit := strings.TrimSpace(string(own))
	return fmt.Sprintf("Estiba %s with path %s, llama.cpp %s of Debian's sid)", commit[:min(12, len(commit))], kernels.Path, peer[1]), nil
}

// estibaBench is what 'estiba bench --json' says.
func (s *session) estibaBench(m subject, threads int, group string, args ...string) action {
	args = append([]string{"bench", m.path(s.root), "--json", "--repeat", strconv.Itoa(m.repeats())}, args...)
	if threads > 0 {
		args = append(args, "--threads", strconv.Itoa(threads))
	}
	return action{estiba, m.name, threads, func(ctx context.Context) (program, parse) {
		p := ours(ctx, args...)
		if group != "" {
			p = p.in(group)
		}
		return p, func(out []byte) (figures, error) {
			var r struct {
				Prefill float64 `json:"prefill_tokens_per_second"`
				Decode  float64 `json:"decode_tokens_per_second"`
				Bytes   float64 `json:"bytes_per_token"`
				Read    float64 `json:"read_bytes_per_second"`
				Threads float64 `json:"threads"`
				Batch   []struct {
					Size            int     `json:"size"`
					TokensPerSecond float64 `json:"tokens_per_second"`
				} `json:"batch"`
			}
			if err := json.Unmarshal(out, &r); err != nil {
				return nil, err
			}
			f := figures{"prompt": r.Prefill, "decode": r.Decode, "bytes": r.Bytes, "roof": r.Read, "threads": r.Threads}
			for _, b := range r.Batch {
				f[batchOf(b.Size)] = b.TokensPerSecond
			}
			return f, nil
		}
	}}
}

func batchOf(size int) string { return "batch " + strconv.Itoa(size) }

func (s *session) llamaBench(m subject, threads int, group string, prompt, generate int) action {
	return action{llamaCPP, m.name, threads, func(ctx context.Context) (program, parse) {
		p := llama(ctx, s.root, "bench", "-m", m.inside(), "-p", strconv.Itoa(prompt), "-n", strconv.Itoa(generate), "-t", strconv.Itoa(threads),
			"-r", strconv.Itoa(m.repeats()), "-o", "jsonl")
		if group != "" {
			p = p.in(group)
		}
		return p, func(out []byte) (figures, error) {
			f := figures{"threads": float64(threads)}
			err := eachLine(out, func(line []byte) error {
				var r struct {
					Prompt  int       `json:"n_prompt"`
					Samples []float64 `json:"samples_ts"`
				}
				if err := json.Unmarshal(line, &r); err != nil {
					return err
				}
				name := "decode"
				if r.Prompt > 0 {
					name = "prompt"
				}
				f[name] = median(r.Samples)
				return nil
			})
			return f, err
		}
	}}
}

func (s *session) llamaBatch(m subject, threads, generate int, sizes []int) action {
	return action{llamaCPP, m.name, threads, func(ctx context.Context) (program, parse) {
		most := sizes[len(sizes)-1]
		p := llama(ctx, s.root, "batched-bench", "-m", m.inside(), "-c", strconv.Itoa(most*(generate+1)), "-npp", "1", "-ntg", strconv.Itoa(generate),
			"-npl", list(sizes), "-t", strconv.Itoa(threads), "--output-format", "jsonl")
		return p, func(out []byte) (figures, error) {
			f := figures{}
			err := eachLine(out, func(line []byte) error {
				var r struct {
					Size  int     `json:"pl"`
					Speed float64 `json:"speed_tg"`
				}
				if err := json.Unmarshal(line, &r); err != nil {
					return err
				}
				f[batchOf(r.Size)] = r.Speed
				return nil
			})
			return f, err
		}
	}}
}

func list(numbers []int) string {
	var words []string
	for _, n := range numbers {
		words = append(words, strconv.Itoa(n))
	}
	return strings.Join(words, ",")
}

// eachLine calls do with every line that is a JSON object.
func eachLine(out []byte, do func([]byte) error) error {
	found := false
	for line := range bytes.Lines(out) {
		if bytes.HasPrefix(line, []byte("{")) {
			found = true
			if err := do(line); err != nil {
				return fmt.Errorf("%w in %s", err, line)
			}
		}
	}
	if !found {
		return fmt.Errorf("no figures in %q", out)
	}
	return nil
}

// startTokens are generated after the first one, so that the memory of a program at work is seen.
const startTokens = 32

func (s *session) estibaStart(m subject) action {
	return action{estiba, m.name, 0, func(ctx context.Context) (program, parse) {
		return ours(ctx, "run", m.path(s.root), "--prompt", "a b", "--max-tokens", strconv.Itoa(startTokens), "--temperature", "0"), nil
	}}
}

// llamaStart is without the step that warms up, which would only delay the first token.
func (s *session) llamaStart(m subject, threads int) action {
	return action{llamaCPP, m.name, threads, func(ctx context.Context) (program, parse) {
		return llama(ctx, s.root, "completion", "-m", m.inside(), "-p", "a b", "-n", strconv.Itoa(startTokens), "-t", strconv.Itoa(threads), "-c", "512",
			"--temp", "0", "--ignore-eos", "-no-cnv", "--no-warmup", "--no-display-prompt"), nil
	}}
}

// watchStart runs a command whose output is text as it comes: when its first byte came, and
// how much memory it had.
func watchStart(p program) (figures, error) {
	var stderr bytes.Buffer
	p.Stderr = &stderr
	out, err := p.StdoutPipe()
	if err != nil {
		return nil, err
	}
	began := time.Now()
	if err := p.Start(); err != nil {
		return nil, err
	}
	f := figures{}
	done, watched := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watched)
		for {
			for name, bytes := range memoryOf(p.Process.Pid) {
				f[name] = max(f[name], bytes)
			}
			select {
			case <-done:
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}()
	_, first := out.Read(make([]byte, 1))
	took := time.Since(began)
	_, rest := io.Copy(io.Discard, out)
	close(done)
	<-watched
	if err := p.failed(p.Wait(), stderr.String()); err != nil {
		return nil, err
	}
	f["first"] = took.Seconds()
	return f, errors.Join(first, rest)
}

// memoryOf a process, in bytes.
func memoryOf(pid int) figures {
	f := figures{}
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		return f // it is gone
	}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		kib, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 64)
		if err != nil {
			continue
		}
		switch name {
		case "VmRSS":
			f["resident"] = 1024 * kib
		case "RssAnon":
			f["anonymous"] = 1024 * kib
		}
	}
	return f
}
