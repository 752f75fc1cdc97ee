package source

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/estiba/estiba/api/worker"
)

// digests computes and remembers: hashing tens of gigabytes for each load of
// an unchanged file would be the longest part of the load.
type digests struct {
	mu   sync.Mutex
	seen map[string]remembered // path -> its digest
}

type remembered struct {
	info os.FileInfo // same inode, size and time of change: same content
	sum  string
}

// of is the digest of a file, or of a folder: sha256 over the sorted lines
// "sha256  path" of its files, as
//
//	find -L . -type f -printf '%P\n' | xargs -d '\n' sha256sum | LC_ALL=C sort | sha256sum
//
// prints it in that folder. A folder with a link to another folder has none: what
// is behind it would be read and not pinned.
func (d *digests) of(ctx context.Context, path string, progress func(float64)) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	files := map[string]string{} // name -> path
	var total int64
	if info.IsDir() {
		err = eachFile(path, func(name, target string) error {
			if strings.ContainsAny(name, "\n\\") {
				return fmt.Errorf("the name %q cannot be part of a digest", name)
			}
			info, err := os.Stat(target)
			if err != nil {
				return err
			}
			if info.IsDir() {
				return fmt.Errorf("%s %w", name, errFolderLink)
			}
			files[name] = target
			total += info.Size()
			return nil
		})
		if err != nil {
			return "", err
		}
	} else {
		files[path], total = path, info.Size()
	}
	var done int64
	count := func(n int64) {
		done += n
		progress(float64(done) / float64(max(total, 1)))
	}
	var lines []string
	for name, target := range files {
		sum, err := d.file(ctx, target, count)
		if err != nil {
			return "", err
		}
		if !info.IsDir() {
			return "sha256:" + sum, nil
		}
		lines = append(lines, sum+"  "+name+"\n")
	}
	slices.Sort(lines)
	sum := sha256.Sum256([]byte(strings.Join(lines, "")))
	return "sha256:" + hex.EncodeToString(sum[:]), nil
}

var errFolderLink = errors.New("is a symbolic link to a folder, which no digest covers: put the files themselves there, or leave spec.source.digest out")

func (d *digests) file(ctx context.Context, path string, count func(int64)) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	d.mu.Lock()
	r, ok := d.seen[path]
	d.mu.Unlock()
	if ok && unchanged(r.info, info) {
		count(info.Size())
		return r.sum, nil
	}
	h := sha256.New()
	buf := make([]byte, 1<<20)
	for {
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		n, err := f.Read(buf)
		h.Write(buf[:n])
		count(int64(n))
		if err == io.EOF {
			break
		}
		if err != nil {
			return "", err
		}
	}
	sum := hex.EncodeToString(h.Sum(nil))
	if after, err := f.Stat(); err != nil || !unchanged(info, after) {
		return sum, err // written to meanwhile: not worth remembering
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.seen == nil || len(d.seen) > maxEntries {
		d.seen = map[string]remembered{}
	}
	d.seen[path] = remembered{info, sum}
	return sum, nil
}

func unchanged(a, b os.FileInfo) bool {
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

func wellFormed(digest string) bool {
	hexadecimal, ok := strings.CutPrefix(digest, "sha256:")
	if !ok || len(hexadecimal) != 64 || strings.ToLower(hexadecimal) != hexadecimal {
		return false
	}
	_, err := hex.DecodeString(hexadecimal)
	return err == nil
}

func mismatch(src worker.Source, got string) error {
	return &Error{ErrDigest, src.URI, fmt.Sprintf("has digest %s, but %s is pinned: mend spec.source.digest or the source", got, src.Digest)}
}
