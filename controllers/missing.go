package controllers

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/estiba/estiba/api/v1alpha1"
)

const (
	// askFor is up to how many Models the API server is asked one by one; for more, it is asked for all.
	askFor = 8
	// askTimeout bounds that.
	askTimeout = 5 * time.Second
)

// missing finds the Models that workers hold and that the cache lacks, and asks
// the API server itself whether they were deleted: a cache may be behind, as
// after it turned to an API server that lags. Then it is an error, and nothing is
// decided on it. Those of which nobody knows are Missing in what is seen: the API
// server does not answer, or they are in namespaces that this operator was not
// told to serve.
func (r *Reconciler) missing(ctx context.Context, seen *Seen) error {
	unlisted := unlisted(seen)
	known := r.gone
	r.gone = map[string]bool{}
	var unknown []string
	for _, key := range sortedKeys(unlisted) {
		if known[key] {
			r.gone[key] = true
		} else {
			unknown = append(unknown, key)
		}
	}
	if len(unknown) == 0 {
		return nil
	}
	seen.Missing = map[string]bool{}
	var ask []string
	for _, key := range unknown {
		namespace, _, _ := strings.Cut(key, "/")
		if len(r.options.Namespaces) == 0 || slices.Contains(r.options.Namespaces, namespace) {
			ask = append(ask, key)
		} else {
			seen.Missing[key] = true
		}
	}
	there, err := r.exist(ctx, ask)
	for _, key := range ask {
		switch {
		case err != nil:
			seen.Missing[key] = true
		case there[key]:
			return fmt.Errorf("the cache lacks Model %s, which exists and has a home: it is behind, and nothing is decided on it", key)
		default:
			r.gone[key] = true
		}
	}
	if err != nil {
		r.log.Info("nobody says whether Models were deleted", "models", len(ask), "error", err)
	}
	return nil
}

// unlisted are the Models that workers hold and that are not among the objects.
func unlisted(seen *Seen) map[string]bool {
	held := map[string]bool{}
	for i := range seen.Workers {
		if report := seen.Workers[i].Report; report != nil {
			for j := range report.Homes {
				held[report.Homes[j].Model] = true
			}
		}
	}
	for i := range seen.Models {
		delete(held, Key(&seen.Models[i]))
	}
	return held
}

// exist says which of the Models the API server has.
func (r *Reconciler) exist(ctx context.Context, keys []string) (map[string]bool, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	there := map[string]bool{}
	if len(keys) <= askFor {
		for _, key := range keys {
			namespace, name, _ := strings.Cut(key, "/")
			err := r.live.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, metadata("Model"))
			if err != nil && !apierrors.IsNotFound(err) {
				return nil, fmt.Errorf("read Model %s: %w", key, err)
			}
			there[key] = err == nil
		}
		return there, nil
	}
	namespaces := r.options.Namespaces
	if len(namespaces) == 0 {
		namespaces = []string{metav1.NamespaceAll}
	}
	for _, namespace := range namespaces {
		all := &metav1.PartialObjectMetadataList{}
		all.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind("ModelList"))
		if err := r.live.List(ctx, all, client.InNamespace(namespace)); err != nil {
			return nil, fmt.Errorf("list Models: %w", err)
		}
		for i := range all.Items {
			there[all.Items[i].Namespace+"/"+all.Items[i].Name] = true
		}
	}
	return there, nil
}

func metadata(kind string) *metav1.PartialObjectMetadata {
	o := &metav1.PartialObjectMetadata{}
	o.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind(kind))
	return o
}
