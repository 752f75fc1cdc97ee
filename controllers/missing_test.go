package controllers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/internal/fixture"
)

// server is an API server that has some Models, or does not answer.
type server struct {
	names []string // of namespace default
	err   error
	asked int
}

func (s *server) Get(_ context.Context, key client.ObjectKey, _ client.Object, _ ...client.GetOption) error {
	s.asked++
	if s.err == nil && !slices.Contains(s.names, key.Name) {
		return apierrors.NewNotFound(schema.GroupResource{}, key.Name)
	}
	return s.err
}

func (s *server) List(_ context.Context, list client.ObjectList, _ ...client.ListOption) error {
	s.asked++
	for _, n := range s.names {
		all := list.(*metav1.PartialObjectMetadataList)
		all.Items = append(all.Items, metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: n}})
	}
	return s.err
}

func TestMissing(t *testing.T) {
	many := func(n int) (models []v1alpha1.Model) {
		for i := range n {
			models = append(models, fixture.NewModel(fmt.Sprintf("m%d", i)))
		}
		return models
	}
	for name, c := range map[string]struct {
		held       int
		cached     int
		server     server
		namespaces []string
		missing    int
		behind     bool
		asked      int
	}{
		"all are in the cache":               {held: 3, cached: 3},
		"one was deleted":                    {held: 3, cached: 2, asked: 1},
		"many were deleted":                  {held: 30, cached: 1, asked: 1},
		"the cache is behind":                {held: 3, cached: 2, server: server{names: []string{"m2"}}, behind: true, asked: 1},
		"the cache is far behind":            {held: 30, cached: 2, server: server{names: []string{"m5"}}, behind: true, asked: 1},
		"the API server is away":             {held: 3, cached: 1, server: server{err: errors.New("no connection")}, missing: 2, asked: 1},
		"they are in a namespace not served": {held: 3, cached: 1, namespaces: []string{"other"}, missing: 2},
	} {
		models := many(c.held)
		w := reporting("w", 5, 1)
		for _, m := range models {
			w.Report.Homes = append(w.Report.Homes, resident(m, 10))
		}
		r := &Reconciler{live: &c.server, log: slog.New(slog.DiscardHandler), options: Options{Namespaces: c.namespaces}}
		for range 2 { // the second time, nothing is asked about what is known
			seen := Seen{Models: models[:c.cached], Workers: []Worker{w}}
			err := r.missing(t.Context(), &seen)
			if (err != nil) != c.behind || len(seen.Missing) != c.missing {
				t.Errorf("%s: %v, missing %v", name, err, slices.Sorted(maps.Keys(seen.Missing)))
			}
			if err != nil || c.missing > 0 {
				break
			}
		}
		if c.server.asked != c.asked {
			t.Errorf("%s: asked %d times", name, c.server.asked)
		}
	}
}
