package explain

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/api/worker"
	"github.com/estiba/estiba/controllers"
	"github.com/estiba/estiba/internal/file"
	"github.com/estiba/estiba/internal/history"
	"github.com/estiba/estiba/internal/kubeconfig"
	"github.com/estiba/estiba/internal/standalone"
)

// maxManifestBytes bounds what is read; Parse says what is too large.
const maxManifestBytes = 16 << 20

// Manifest explains where the Models of a manifest would land if it were
// applied now. Nothing is applied. A path "-" is the standard input.
func Manifest(ctx context.Context, w io.Writer, stdin io.Reader, path string, o Options) error {
	objects, err := read(ctx, stdin, path, o.namespace())
	if err != nil {
		return err
	}
	if len(objects.Models) == 0 {
		return fmt.Errorf("read %s: it has no Model to explain", path)
	}
	if o.Server == "" {
		if err := check(ctx, objects); err != nil {
			return err
		}
	}
	latest, err := history.Latest(ctx, o.Options)
	if err != nil {
		return err
	}
	seen := latest.Seen
	for _, p := range objects.Pools {
		seen = controllers.ProposePool(seen, p)
	}
	var all []controllers.Explanation
	for _, m := range objects.Models {
		after, err := propose(ctx, seen, m, o)
		if err != nil {
			return err
		}
		e := controllers.ExplainProposal(seen, after, controllers.Key(&m))
		for i, n := range e.Needs {
			e.Needs[i].Given = o.Needs > 0 && !n.Measured && n.Bytes == o.Needs && n.Weights == o.Needs
		}
		all = append(all, e)
		seen = after
	}
	if o.JSON && len(all) > 1 {
		return json.NewEncoder(w).Encode(map[string]any{"models": all})
	}
	for i, e := range all {
		if i > 0 {
			fmt.Fprintln(w)
		}
		if err := o.tell(w, e); err != nil {
			return err
		}
	}
	return nil
}

// read the manifest of a path, or those of a folder.
func read(ctx context.Context, stdin io.Reader, path, namespace string) (standalone.Manifests, error) {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return standalone.ReadIn(namespace, path)
	}
	name := filepath.Clean(path)
	var text []byte
	var err error
	if path == "-" {
		name = "standard input"
		if text, err = file.ReadFrom(ctx, stdin, maxManifestBytes); err != nil {
			err = fmt.Errorf("read %s: %w", name, err)
		}
	} else if text, err = file.Read(ctx, path, maxManifestBytes); errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w; name a manifest with -f, or - for the standard input", err)
	}
	if err != nil {
		return standalone.Manifests{}, err
	}
	objects, err := standalone.Parse(text, name, namespace, time.Now())
	if err != nil {
		return standalone.Manifests{}, fmt.Errorf("read %s: %w", name, err)
	}
	return objects, nil
}

// propose adds a Model to seen, with what it needs: as said, as known, or as a
// worker of each pool reads it.
func propose(ctx context.Context, seen controllers.Seen, m v1alpha1.Model, o Options) (controllers.Seen, error) {
	after, key := controllers.Propose(seen, m, nil), controllers.Key(&m)
	found := map[string]worker.Inspection{}
	ask, rest := controllers.Unread(after, key)
	if o.Needs > 0 {
		for _, pool := range append(ask, rest...) {
			found[pool] = worker.Inspection{Footprint: worker.Footprint{WeightsBytes: o.Needs}}
		}
		return controllers.Propose(seen, m, found), nil
	}
	for _, pool := range ask {
		in, err := history.Inspect(ctx, o.Options, pool, controllers.InspectionOf(&m))
		if err != nil {
			return seen, fmt.Errorf("ask a worker of pool %s what %s needs: %w (or say it with --needs, as in --needs 14Gi)", pool, key, err)
		}
		found[pool] = in
	}
	return controllers.Propose(seen, m, found), nil
}

// check has the API server say whether it would take the objects. Who may not
// write them has heard from Parse, which has the same rules.
func check(ctx context.Context, objects standalone.Manifests) error {
	config, err := kubeconfig.Get("")
	if err != nil {
		return fmt.Errorf("%w (name a cluster with KUBECONFIG, or an estiba serve with --server)", err)
	}
	c, err := client.New(config, client.Options{})
	if err != nil {
		return fmt.Errorf("connect to the cluster: %w", err)
	}
	for i := range objects.Pools {
		p := &objects.Pools[i]
		if err := checkOne(ctx, c, "InferencePool", p, p.Spec); err != nil {
			return err
		}
	}
	for i := range objects.Models {
		m := &objects.Models[i]
		if err := checkOne(ctx, c, "Model", m, m.Spec); err != nil {
			return err
		}
	}
	return nil
}

func checkOne(ctx context.Context, c client.Client, kind string, o client.Object, spec any) error {
	text, err := json.Marshal(map[string]any{
		"apiVersion": v1alpha1.GroupVersion.String(), "kind": kind,
		"metadata": map[string]any{"name": o.GetName(), "namespace": o.GetNamespace(), "labels": o.GetLabels()},
		"spec":     spec,
	})
	if err != nil {
		return err
	}
	u := &unstructured.Unstructured{}
	u.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind(kind))
	u.SetName(o.GetName())
	u.SetNamespace(o.GetNamespace())
	err = c.Patch(ctx, u, client.RawPatch(types.ApplyPatchType, text), client.DryRunAll, client.FieldOwner("estiba-explain"), client.ForceOwnership)
	if apierrors.IsForbidden(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("the API server would not take it: %w", err)
	}
	return nil
}
