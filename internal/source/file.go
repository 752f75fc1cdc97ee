package source

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/estiba/estiba/api/worker"
)

// maxEntries bounds what is looked at in one model folder.
const maxEntries = 100_000

func (s *Store) fetchFile(ctx context.Context, src worker.Source, u *url.URL, progress func(float64)) (string, error) {
	path, err := s.local(src.URI, u)
	if err != nil {
		return "", err
	}
	if src.Digest != "" {
		got, err := s.digests.of(ctx, path, progress)
		if errors.Is(err, errFolderLink) {
			return "", &Error{ErrRefused, src.URI, err.Error()}
		}
		if err != nil {
			return "", unlessDone(ctx, &Error{ErrUnavailable, src.URI, err.Error()})
		}
		if got != src.Digest {
			return "", mismatch(src, got)
		}
	}
	progress(1)
	return path, nil
}

// local is the real path of a file:// URI: below a root, as is everything
// inside it that a symbolic link leads to.
func (s *Store) local(uri string, u *url.URL) (string, error) {
	path := filepath.Clean(filepath.FromSlash(u.Path))
	restricted := len(s.Roots) > 0 || !s.AllowAll
	if restricted && !below(s.Roots, path) {
		return "", s.outside(uri, "lies outside")
	}
	resolved, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", &Error{ErrUnavailable, uri, "cannot be read: " + reason(err)}
	}
	var roots []string // resolved, as what is compared with them
	for _, r := range s.Roots {
		if r, err := filepath.EvalSymlinks(r); err == nil {
			roots = append(roots, r)
		}
	}
	if restricted && !below(roots, resolved) {
		return "", s.outside(uri, "leads, by a symbolic link, outside")
	}
	info, err := os.Stat(resolved)
	switch {
	case err != nil:
		return "", &Error{ErrUnavailable, uri, "cannot be read: " + reason(err)}
	case info.Mode().IsRegular():
		return resolved, nil
	case !info.IsDir():
		return "", &Error{ErrRefused, uri, "is neither a file nor a folder"}
	}
	err = eachFile(resolved, func(name, target string) error {
		if restricted && !below(roots, target) {
			return s.outside(uri, fmt.Sprintf("has a symbolic link, %s, that leads outside", name))
		}
		return nil
	})
	var e *Error
	switch {
	case errors.As(err, &e):
		return "", e
	case errors.Is(err, errSpecial):
		return "", &Error{ErrRefused, uri, err.Error()}
	case err != nil:
		return "", &Error{ErrUnavailable, uri, "cannot be read: " + err.Error()}
	}
	return resolved, nil
}

var errSpecial = errors.New("is neither a file nor a folder")

// eachFile calls f for every file below a folder, with its name relative to
// the folder (slashes) and the path that it leads to. Links to folders are
// followed no further than that path.
func eachFile(folder string, f func(name, target string) error) error {
	entries := 0
	return filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entries++; entries > maxEntries {
			return fmt.Errorf("more than %d files; name the model's own folder", maxEntries)
		}
		rel, err := filepath.Rel(folder, path)
		if err != nil {
			return err
		}
		name, target := filepath.ToSlash(rel), path
		if d.Type()&fs.ModeSymlink != 0 {
			if target, err = filepath.EvalSymlinks(path); err != nil {
				return fmt.Errorf("link %s: %s", name, reason(err))
			}
			info, err := os.Stat(target)
			if err != nil {
				return err
			}
			d = fs.FileInfoToDirEntry(info)
			if d.IsDir() {
				return f(name, target)
			}
		}
		if d.IsDir() {
			return nil
		}
		if !d.Type().IsRegular() {
			return fmt.Errorf("%s %w", name, errSpecial)
		}
		return f(name, target)
	})
}

func (s *Store) outside(uri, what string) error {
	if len(s.Roots) == 0 {
		return &Error{ErrRefused, uri, "this worker may read no files: set spec.modelRoots of its pool (--model-root of a worker) to the folder that holds its models"}
	}
	return &Error{ErrRefused, uri, fmt.Sprintf("%s the model roots (%s): move the model below one of them, or add its folder to spec.modelRoots of the pool (--model-root of a worker)", what, strings.Join(s.Roots, ", "))}
}

// below says whether a clean path is one of the roots or inside one.
func below(roots []string, path string) bool {
	for _, r := range roots {
		rel, err := filepath.Rel(filepath.Clean(r), path)
		if err == nil && rel != ".." && !strings.HasPrefix(rel, ".."+string(filepath.Separator)) {
			return true
		}
	}
	return false
}

// reason is an error without the path, which the message has already.
func reason(err error) string {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Err.Error()
	}
	return err.Error()
}

// unlessDone prefers the context's error, which is nobody's fault.
func unlessDone(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}
