package standalone

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/estiba/estiba/api/v1alpha1"
	"k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/controller-runtime/pkg/client"
	sigyaml "sigs.k8s.io/yaml"
)

// maxManifestBytes bounds one file of manifests.
const maxManifestBytes = 8 << 20

// Manifests are the objects that files describe, checked and with defaults.
type Manifests struct {
	Models []v1alpha1.Model
	Pools  []v1alpha1.InferencePool
}

// Read reads files, and of a folder every .yaml, .yml and .json file in the
// order of their names. Every error names the file and the document in it.
func Read(paths ...string) (Manifests, error) { return ReadIn("default", paths...) }

// ReadIn is Read with objects without a namespace in the one given.
func ReadIn(namespace string, paths ...string) (Manifests, error) {
	var all Manifests
	seen := map[string]string{} // kind namespace/name -> file
	for _, path := range paths {
		files, err := manifestFiles(path)
		if err != nil {
			return Manifests{}, err
		}
		for _, file := range files {
			if err := all.readFile(file, namespace, seen); err != nil {
				return Manifests{}, fmt.Errorf("read %s: %w", file, err)
			}
		}
	}
	return all, nil
}

func manifestFiles(path string) ([]string, error) {
	info, err := os.Stat(path)
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return nil, fmt.Errorf("read manifests of %s: %w; name a file, or a folder of files, with -f", path, e.Err)
	}
	if !info.IsDir() {
		return []string{path}, nil
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, fmt.Errorf("read manifests: %w", err)
	}
	var files []string
	for _, e := range entries {
		if slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(e.Name())) && !strings.HasPrefix(e.Name(), ".") {
			files = append(files, filepath.Join(path, e.Name()))
		}
	}
	return files, nil
}

func (m *Manifests) readFile(file, namespace string, seen map[string]string) error {
	if info, err := os.Stat(file); err == nil && !info.Mode().IsRegular() {
		return errors.New("it is no file: manifests are watched, so they cannot come from a pipe or a device")
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxManifestBytes+1))
	if err != nil {
		return err
	}
	if len(text) > maxManifestBytes {
		return fmt.Errorf("larger than %d MiB: split it", maxManifestBytes>>20)
	}
	created := time.Time{}
	if info, err := f.Stat(); err == nil {
		created = info.ModTime()
	}
	return m.parse(text, file, namespace, created, seen)
}

// Parse reads the documents of one manifest, as of a file of that name made at
// that time. Objects without a namespace are of the one given. Every error names the document.
func Parse(text []byte, name, namespace string, created time.Time) (Manifests, error) {
	var m Manifests
	if len(text) > maxManifestBytes {
		return m, fmt.Errorf("larger than %d MiB: split it", maxManifestBytes>>20)
	}
	err := m.parse(text, name, namespace, created, map[string]string{})
	return m, err
}

func (m *Manifests) parse(text []byte, file, namespace string, created time.Time, seen map[string]string) error {
	docs := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text)))
	for i := 1; ; i++ {
		doc, err := docs.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("document %d: %w", i, err)
		}
		if len(bytes.TrimSpace(stripComments(doc))) == 0 {
			continue
		}
		if err := m.add(doc, file, namespace, created, seen); err != nil {
			return fmt.Errorf("document %d: %w", i, err)
		}
	}
}

// add decodes one document; unknown fields are errors, as with kubectl.
func (m *Manifests) add(doc []byte, file, namespace string, created time.Time, seen map[string]string) error {
	text, err := sigyaml.YAMLToJSONStrict(doc)
	if err != nil {
		if _, ok := errors.AsType[*json.UnsupportedValueError](err); ok {
			return errors.New("a value is .nan or .inf: no field takes such numbers")
		}
		return err
	}
	var head struct {
		APIVersion, Kind string
		Metadata         struct{ Name any }
	}
	if len(text) == 0 || text[0] != '{' {
		return errors.New("it is no object: write fields, as in apiVersion: " + v1alpha1.GroupVersion.String())
	}
	if err := json.Unmarshal(text, &head); err != nil {
		return plain(err)
	}
	if want := v1alpha1.GroupVersion.String(); head.APIVersion != want {
		return fmt.Errorf("apiVersion is %q: Estiba reads %s", head.APIVersion, want)
	}
	var object client.Object
	switch head.Kind {
	case "Model":
		object = &v1alpha1.Model{}
	case "InferencePool":
		object = &v1alpha1.InferencePool{}
	default:
		return fmt.Errorf("kind is %q: Estiba reads Model and InferencePool", head.Kind)
	}
	strict := json.NewDecoder(bytes.NewReader(text))
	strict.DisallowUnknownFields()
	if err := strict.Decode(object); err != nil {
		if e := wrong(text, object); e != nil {
			err = e
		}
		return fmt.Errorf("%s %v: %w", head.Kind, head.Metadata.Name, plain(err))
	}
	if object.GetName() == "" {
		return fmt.Errorf("%s without metadata.name: give it one", head.Kind)
	}
	if object.GetNamespace() == "" {
		object.SetNamespace(namespace)
	}
	key := head.Kind + " " + object.GetNamespace() + "/" + object.GetName()
	if other, twice := seen[key]; twice {
		return fmt.Errorf("%s is also in %s: remove one of them", key, other)
	}
	seen[key] = file
	if err := finish(object, created); err != nil {
		return err
	}
	switch o := object.(type) {
	case *v1alpha1.Model:
		m.Models = append(m.Models, *o)
	case *v1alpha1.InferencePool:
		m.Pools = append(m.Pools, *o)
	}
	return nil
}

// plain puts an error of encoding/json into words for the author of a manifest.
func plain(err error) error {
	if e, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return fmt.Errorf("field %s is a %s, which does not fit: quote it if it is meant as a string", e.Field, e.Value)
	}
	return errors.New(strings.TrimPrefix(err.Error(), "json: "))
}

func stripComments(doc []byte) []byte {
	var kept []byte
	for line := range bytes.Lines(doc) {
		if t := bytes.TrimSpace(line); len(t) > 0 && t[0] != '#' && !bytes.Equal(t, []byte("---")) {
			kept = append(kept, line...)
		}
	}
	return kept
}

// stamp identifies the content of paths cheaply, to see changes.
func stamp(paths []string) string {
	var files []string
	var s strings.Builder
	for _, path := range paths {
		these, err := manifestFiles(path)
		if err != nil {
			fmt.Fprintln(&s, err)
		}
		files = append(files, these...)
	}
	for _, f := range files {
		info, err := os.Stat(f)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			fmt.Fprintf(&s, "%s %v\n", f, err)
			continue
		}
		fmt.Fprintf(&s, "%s %d %d\n", f, info.Size(), info.ModTime().UnixNano())
	}
	return s.String()
}

// emptied is a file of paths that is empty and was not before: whoever writes one often cuts it first.
// filled are those that were not, which it adds to.
func emptied(paths []string, filled map[string]bool) (file string) {
	for _, path := range paths {
		files, _ := manifestFiles(path) // Read says what is wrong
		for _, f := range files {
			if info, err := os.Stat(f); err != nil {
				continue
			} else if info.Size() > 0 {
				filled[f] = true
			} else if filled[f] {
				file = f
			}
		}
	}
	return file
}
