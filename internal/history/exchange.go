package history

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// patience is how long an answer may be silent: before it begins, and between two parts of it.
const patience = 15 * time.Second

// Address is that of a server as --server has it, with or without a scheme.
// Errors do not say it: it may have a password.
func Address(server string) (*url.URL, error) {
	if !strings.Contains(server, "://") {
		server = "http://" + server
	}
	u, err := url.Parse(strings.TrimSuffix(server, "/"))
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, errors.New("--server is no address: write one such as http://127.0.0.1:8080")
	}
	return u, nil
}

// Exchange sends a request and has read take the answer of status 200. A server that
// says nothing for so long is not waited for. Other statuses, and answers that
// are not what was asked for, are errors that say who gave them.
func Exchange(ctx context.Context, client *http.Client, req *http.Request, patience time.Duration, read func(io.Reader) error) error {
	at := req.URL.Redacted()
	silent := fmt.Errorf("%s has not answered for %v: is an estiba running there? --server names its address", at, patience)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	timer := time.AfterFunc(patience, func() { cancel(silent) })
	defer timer.Stop()
	err := exchange(client, req.WithContext(ctx), at, func(body io.Reader) error { return read(heard{body, timer, patience}) })
	if err != nil && context.Cause(ctx) == silent {
		return silent
	}
	return err
}

func exchange(client *http.Client, req *http.Request, at string, read func(io.Reader) error) error {
	resp, err := client.Do(req)
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%s closed the connection without an answer (is this the address of an estiba serve?)", at)
	case err != nil:
		return fmt.Errorf("%w (is an estiba running there? --server names its address)", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return refusal(resp, at)
	}
	err = read(resp.Body)
	_, garbled := errors.AsType[*json.SyntaxError](err)
	switch kind := resp.Header.Get("Content-Type"); {
	case err == nil:
		return nil
	case garbled && !strings.Contains(kind, "json"):
		return fmt.Errorf("%s answers with %s, not with JSON (is this the address of an estiba serve?)", at, cmp.Or(kind, "something"))
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("the answer of %s ends too early: %w", at, err)
	}
	return fmt.Errorf("read the answer of %s: %w", at, err)
}

// refusal is an answer of another status than 200: in the words of the server, if it has some for people.
func refusal(resp *http.Response, at string) error {
	why, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	text := strings.TrimSpace(string(why))
	if text == "" || resp.StatusCode == http.StatusNotFound || strings.Contains(resp.Header.Get("Content-Type"), "html") {
		return fmt.Errorf("%s answers %s (is this the address of an estiba serve, or of an operator's --debug-listen?)", at, resp.Status)
	}
	return fmt.Errorf("%s answers %s: %s", at, resp.Status, text)
}

// heard is a body that puts off the end of patience with each part that comes.
type heard struct {
	body     io.Reader
	timer    *time.Timer
	patience time.Duration
}

func (h heard) Read(b []byte) (int, error) {
	n, err := h.body.Read(b)
	if n > 0 {
		h.timer.Reset(h.patience)
	}
	return n, err
}
