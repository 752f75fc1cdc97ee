// Command demo serves the bundled tiny model with bin/estiba through the whole
// path in one process, asks it something, and shows the streamed answer and
// where the models were put. It stays up on a terminal, and ends without one.
// With --ask URL it only asks the gateway there.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/term"
)

const (
	binary = "bin/estiba"
	prompt = "Once upon a time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE) // of an output that nobody reads any more too: what it started is to end
	defer stop()
	only := flag.String("ask", "", "URL of a gateway that runs already: only ask it")
	flag.Parse()
	demo := run
	if *only != "" {
		demo = func(ctx context.Context) error { return ask(ctx, os.Stdout, *only, "stories", prompt, 120) }
	}
	if err := demo(ctx); err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	terminal := term.IsTerminal(int(os.Stdout.Fd()))
	address, err := pickAddress(terminal)
	if err != nil {
		return err
	}
	manifest, err := writeManifest()
	if err != nil {
		return err
	}
	defer os.RemoveAll(filepath.Dir(manifest))

	url := "http://" + address
	say("serving hack/demo/demo.yaml on %s: two models in one worker process, no Kubernetes", url)
	serve := exec.CommandContext(ctx, binary, "serve", "-f", manifest, "--listen", address, "--memory", "64Mi")
	var log bytes.Buffer
	serve.Stderr = &log
	serve.Cancel = func() error { return serve.Process.Signal(syscall.SIGTERM) }
	serve.WaitDelay = 15 * time.Second
	if err := serve.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- serve.Wait() }()
	defer func() {
		_ = serve.Process.Signal(syscall.SIGTERM)
		<-ended
	}()

	if err := waitReady(ctx, url, ended); err != nil {
		return fmt.Errorf("%w; the log of estiba serve:\n%s", err, log.String())
	}
	say("asking the model stories: %q (streamed from %s/v1/completions)", prompt, url)
	if err := ask(ctx, os.Stdout, url, "stories", prompt, 120); err != nil {
		return fmt.Errorf("%w; the log of estiba serve:\n%s", err, log.String())
	}
	for _, c := range []struct{ what, args string }{
		{"the stowage: what is where", "top"},
		{"why it is there", "explain model stories"},
	} {
		say("%s (bin/estiba %s --server %s)", c.what, c.args, url)
		cmd := exec.CommandContext(ctx, binary, append(strings.Fields(c.args), "--server", url)...)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Run(); err != nil {
			return err
		}
	}
	if !terminal {
		return nil
	}
	fmt.Printf(`
It is still up. Try, in another terminal:
  curl %[1]s/v1/models
  curl %[1]s/v1/chat/completions -H 'Content-Type: application/json' \
    -d '{"model": "stories-f16", "messages": [{"role": "user", "content": "Tell me a story"}], "max_tokens": 60}'
  bin/estiba top --server %[1]s
Ctrl-C ends it.
`, url)
	err = <-ended
	ended <- nil
	return err
}

// pickAddress is the usual one for a person who will type it, if it is free.
func pickAddress(usual bool) (string, error) {
	if usual {
		if l, err := net.Listen("tcp", "127.0.0.1:8080"); err == nil {
			return "127.0.0.1:8080", l.Close()
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// writeManifest fills in where the models of this checkout are.
func writeManifest() (string, error) {
	text, err := os.ReadFile("hack/demo/demo.yaml")
	if err != nil {
		return "", fmt.Errorf("%w (run it from the repository's root, as make demo does)", err)
	}
	models, err := filepath.Abs("test/models")
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "estiba-demo-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "demo.yaml")
	return path, os.WriteFile(path, []byte(strings.ReplaceAll(string(text), "@MODELS@", models)), 0o600)
}

func waitReady(ctx context.Context, url string, ended chan error) error {
	deadline := time.After(time.Minute)
	for {
		resp, err := http.Get(url + "/readyz")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-ended:
			ended <- err
			return fmt.Errorf("estiba serve ended: %v", err)
		case <-deadline:
			return errors.New("estiba serve was not ready within a minute")
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// ask streams a completion to w.
func ask(ctx context.Context, w io.Writer, url, model, prompt string, maxTokens int) error {
	body, err := json.Marshal(map[string]any{"model": model, "prompt": prompt, "max_tokens": maxTokens, "temperature": 0, "stream": true})
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/v1/completions", bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
		return fmt.Errorf("%s: %s", resp.Status, text)
	}
	fmt.Fprint(w, prompt)
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		if data == "[DONE]" {
			fmt.Fprintln(w)
			return nil
		}
		var chunk struct {
			Choices []struct{ Text string }
			Error   *struct{ Message string }
		}
		if err := json.Unmarshal([]byte(data), &chunk); err != nil {
			return fmt.Errorf("answer: %w", err)
		}
		if chunk.Error != nil {
			return errors.New(chunk.Error.Message)
		}
		for _, c := range chunk.Choices {
			fmt.Fprint(w, c.Text)
		}
	}
	if err := lines.Err(); err != nil {
		return err
	}
	return errors.New("the answer ended without [DONE]")
}

func say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "==> "+format+"\n", args...)
}
