package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// image NAME OUT.tar SOURCE=PATH... writes an OCI image layout, as one tar,
// whose only layer holds the SOURCEs (files or folders) at the given absolute
// paths; if the first is an executable file, it is the entrypoint. NAME is a
// full reference such as localhost/pause:dev. `ctr -n k8s.io images import
// OUT.tar` loads it. Processes run as nobody in particular (65532), and /tmp is
// theirs to write to. The same inputs give the same bytes.
func image(args []string) error {
	if len(args) < 3 {
		return fmt.Errorf("image: want NAME OUT.tar SOURCE=PATH...")
	}
	name, out := args[0], args[1]

	var layer bytes.Buffer
	tw := tar.NewWriter(&layer)
	if err := addFolder(tw, "tmp", 0o1777); err != nil {
		return err
	}
	folders := map[string]bool{"tmp": true} // in the layer already
	settings := map[string]any{"Env": []string{"PATH=/"}, "WorkingDir": "/", "User": "65532:65532"}
	for i, arg := range args[2:] {
		source, target, ok := strings.Cut(arg, "=/")
		if !ok {
			return fmt.Errorf("image: %q is not SOURCE=/PATH", arg)
		}
		err := filepath.WalkDir(source, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(source, path)
			if err != nil {
				return err
			}
			to := filepath.Join(target, rel)
			folder := to
			if !d.IsDir() {
				folder = filepath.Dir(to)
			}
			for _, parent := range parents(folder) {
				if !folders[parent] {
					folders[parent] = true
					if err := addFolder(tw, parent, 0o755); err != nil {
						return err
					}
				}
			}
			if d.IsDir() {
				return nil
			}
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			mode := int64(0o644)
			if info.Mode()&0o100 != 0 {
				mode = 0o755
				if i == 0 && rel == "." {
					settings["Entrypoint"] = []string{"/" + to}
				}
			}
			return addFile(tw, to, mode, data)
		})
		if err != nil {
			return err
		}
	}
	if err := tw.Close(); err != nil {
		return err
	}
	var packed bytes.Buffer
	zw, _ := gzip.NewWriterLevel(&packed, gzip.BestSpeed)
	if _, err := zw.Write(layer.Bytes()); err != nil {
		return err
	}
	if err := zw.Close(); err != nil {
		return err
	}

	f, err := os.Create(out)
	if err != nil {
		return err
	}
	defer f.Close()
	tw = tar.NewWriter(f)
	blob := func(mediaType string, data []byte) (map[string]any, error) {
		d := digest(data)
		return map[string]any{"mediaType": mediaType, "digest": "sha256:" + d, "size": len(data)},
			addFile(tw, "blobs/sha256/"+d, 0o644, data)
	}
	layerDesc, err := blob("application/vnd.oci.image.layer.v1.tar+gzip", packed.Bytes())
	if err != nil {
		return err
	}
	config, _ := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux",
		"config": settings,
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + digest(layer.Bytes())}},
	})
	configDesc, err := blob("application/vnd.oci.image.config.v1+json", config)
	if err != nil {
		return err
	}
	manifest, _ := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": configDesc, "layers": []any{layerDesc},
	})
	manifestDesc, err := blob("application/vnd.oci.image.manifest.v1+json", manifest)
	if err != nil {
		return err
	}
	manifestDesc["annotations"] = map[string]string{"io.containerd.image.name": name}
	index, _ := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []any{manifestDesc}})
	if err := addFile(tw, "index.json", 0o644, index); err != nil {
		return err
	}
	if err := addFile(tw, "oci-layout", 0o644, []byte(`{"imageLayoutVersion":"1.0.0"}`)); err != nil {
		return err
	}
	if err := tw.Close(); err != nil {
		return err
	}
	return f.Close()
}

func addFile(tw *tar.Writer, name string, mode int64, data []byte) error {
	if err := tw.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: int64(len(data))}); err != nil {
		return err
	}
	_, err := tw.Write(data)
	return err
}

func addFolder(tw *tar.Writer, name string, mode int64) error {
	return tw.WriteHeader(&tar.Header{Name: name + "/", Typeflag: tar.TypeDir, Mode: mode})
}

// parents of "a/b" are "a" and "a/b".
func parents(folder string) []string {
	var all []string
	for ; folder != "."; folder = filepath.Dir(folder) {
		all = append(all, folder)
	}
	slices.Reverse(all)
	return all
}

func digest(b []byte) string { return fmt.Sprintf("%x", sha256.Sum256(b)) }
