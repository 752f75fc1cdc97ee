package controllers

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/api/worker"
)

// Defaulted is m with what the API server fills in.
func Defaulted(m v1alpha1.Model) v1alpha1.Model {
	m = *m.DeepCopy()
	if m.Namespace == "" {
		m.Namespace = metav1.NamespaceDefault
	}
	if m.Spec.Precision.Format == "" {
		m.Spec.Precision.Format = v1alpha1.FormatAsStored
	}
	if m.Spec.Eviction == "" {
		m.Spec.Eviction = v1alpha1.EvictWhenNeeded
	}
	if a := m.Spec.Autoscaling; a != nil && a.Max == 0 {
		a.Max = 1
	}
	return m
}

// DefaultedPool is p with what the API server fills in.
func DefaultedPool(p v1alpha1.InferencePool) v1alpha1.InferencePool {
	p = *p.DeepCopy()
	if p.Namespace == "" {
		p.Namespace = metav1.NamespaceDefault
	}
	if p.Spec.Workers.Max == 0 { // which also stands for a field that is not there
		p.Spec.Workers.Max = 1
	}
	if p.Spec.AllowedNamespaces.From == "" {
		p.Spec.AllowedNamespaces.From = v1alpha1.NamespacesSame
	}
	return p
}

var (
	digestForm   = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
	headroomForm = regexp.MustCompile(`^([0-9]|[1-4][0-9]|50)%$`)
	uriForm      = regexp.MustCompile(`^(file|http|https)://.+`)
)

// rule is a rule of the custom resources for programs that have no API server.
type rule struct {
	broken  bool
	message string
}

// Validate applies the rules of a defaulted Model's schema. The error has a
// line for each broken rule and says what to write instead.
func Validate(m v1alpha1.Model) error {
	s := m.Spec
	rules := append(names(m.ObjectMeta, 63, "metadata.name is longer than 63 characters: shorten it, and put long names in spec.servedNames"),
		rule{s.Source.URI == "", "spec.source.uri is missing: write where the model's files are, for example file:///models/my-model"},
		rule{s.Source.URI != "" && !uriForm.MatchString(s.Source.URI), "spec.source.uri must start with file://, http:// or https://, for example file:///models/my-model or https://host/my-model.gguf"},
		rule{strings.HasPrefix(s.Source.URI, "file://") && !strings.HasPrefix(s.Source.URI, "file:///"), "a file:// uri has an absolute path: write three slashes, as in file:///models/my-model"},
		rule{len(s.Source.URI) > 2048, "spec.source.uri is longer than 2048 characters"},
		rule{s.Source.Digest != "" && !digestForm.MatchString(s.Source.Digest), "spec.source.digest must be sha256: followed by 64 lower-case hexadecimal digits, as sha256sum prints them"},
		rule{s.Replicas != nil && s.Autoscaling != nil, "spec.replicas and spec.autoscaling exclude each other: write replicas for a fixed number, or autoscaling with min and max"},
		rule{s.Replicas != nil && (*s.Replicas < 0 || *s.Replicas > 1000), "spec.replicas must lie between 0 and 1000"},
		rule{s.Precision.Format != v1alpha1.FormatAsStored, fmt.Sprintf("spec.precision.format %q is not supported: write AsStored", s.Precision.Format)},
		rule{s.Context.MaxTokens != 0 && (s.Context.MaxTokens < 16 || s.Context.MaxTokens > 16777216), "spec.context.maxTokens must lie between 16 and 16777216; leave it out for the model's own, at most 8192"},
		rule{s.Context.Sequences < 0 || s.Context.Sequences > 4096, "spec.context.sequences must lie between 1 and 4096"},
		rule{s.Priority < -1000000 || s.Priority > 1000000, "spec.priority must lie between -1000000 and 1000000"},
		rule{s.Eviction != v1alpha1.EvictWhenNeeded && s.Eviction != v1alpha1.EvictNever, fmt.Sprintf("spec.eviction %q is unknown: write WhenNeeded or Never", s.Eviction)},
		rule{len(s.ServedNames) > 16, "spec.servedNames has more than 16 names"},
	)
	seen := map[string]bool{}
	for _, n := range s.ServedNames {
		rules = append(rules,
			rule{n == "" || len(n) > 253, "each of spec.servedNames has 1 to 253 characters"},
			rule{seen[n], fmt.Sprintf("spec.servedNames has %q twice", n)})
		seen[n] = true
	}
	if a := s.Autoscaling; a != nil {
		rules = append(rules,
			rule{a.Min < 0 || a.Min > 1000, "spec.autoscaling.min must lie between 0 and 1000"},
			rule{a.Max < 1 || a.Max > 1000, "spec.autoscaling.max must lie between 1 and 1000"},
			duration("spec.autoscaling.idleAfter", a.IdleAfter),
			rule{a.Min > a.Max, "spec.autoscaling.min must not be larger than spec.autoscaling.max"},
			rule{a.Target.Requests < 0 || a.Target.Requests > 100000, "spec.autoscaling.target.requests must lie between 1 and 100000"})
	}
	if s.PoolSelector != nil {
		_, err := metav1.LabelSelectorAsSelector(s.PoolSelector)
		rules = append(rules, rule{err != nil, fmt.Sprintf("spec.poolSelector is not a label selector: %v", err)})
	}
	return broken("Model", m.ObjectMeta, rules)
}

// ValidatePool does the same for a defaulted InferencePool.
func ValidatePool(p v1alpha1.InferencePool) error {
	s := p.Spec
	rules := append(names(p.ObjectMeta, 50, "metadata.name must have at most 50 characters and no dots: worker pods are named after it"),
		rule{strings.Contains(p.Name, "."), "metadata.name must have at most 50 characters and no dots: worker pods are named after it"},
		rule{s.Workers.Min < 0 || s.Workers.Max > 10000, "spec.workers.min and max must lie between 0 and 10000"},
		rule{s.Workers.Min > s.Workers.Max, "spec.workers.min must not be larger than spec.workers.max"},
		rule{s.Replicas != nil && (*s.Replicas < s.Workers.Min || *s.Replicas > s.Workers.Max), "spec.replicas must lie between spec.workers.min and spec.workers.max; raise workers.max or lower replicas"},
		rule{s.Memory.Headroom != "" && !headroomForm.MatchString(s.Memory.Headroom), "spec.memory.headroom is a whole percentage from 0% to 50%, as in 5%"},
		rule{slices.ContainsFunc(s.ModelRoots, func(r string) bool { return !strings.HasPrefix(r, "/") }), "each of spec.modelRoots is an absolute path, as in /models"},
		rule{len(s.ModelRoots) > 16, "spec.modelRoots has more than 16 folders"},
		rule{(s.AllowedNamespaces.From == v1alpha1.NamespacesSelector) != (s.AllowedNamespaces.Selector != nil), "spec.allowedNamespaces.selector goes with from: Selector, and only with it"},
		rule{!slices.Contains([]v1alpha1.NamespacesFrom{v1alpha1.NamespacesSame, v1alpha1.NamespacesAll, v1alpha1.NamespacesSelector}, s.AllowedNamespaces.From),
			fmt.Sprintf("spec.allowedNamespaces.from %q is unknown: write Same, All or Selector", s.AllowedNamespaces.From)},
		rule{s.Update.Type != "" && s.Update.Type != "Rolling", fmt.Sprintf("spec.update.type %q is unknown: write Rolling", s.Update.Type)},
		size("spec.device.memory", s.Device.Memory, "16Gi"),
		size("spec.memory.host", s.Memory.Host, "8Gi"),
		size("spec.cache.size", s.Cache.Size, "10Gi"),
		rule{s.Moves.MaxPerHour != nil && (*s.Moves.MaxPerHour < 0 || *s.Moves.MaxPerHour > 120), "spec.moves.maxPerHour must lie between 0 and 120; 0 means no moves"},
		size("spec.moves.maxBytesPerHour", s.Moves.MaxBytesPerHour, "100Gi"),
		duration("spec.update.drain", s.Update.Drain),
		duration("spec.scaleDown.after", s.ScaleDown.After),
		rule{s.Update.MaxUnavailable < 0, "spec.update.maxUnavailable must be at least 1"},
	)
	return broken("InferencePool", p.ObjectMeta, rules)
}

func size(field string, q *resource.Quantity, as string) rule {
	return rule{q != nil && q.Sign() < 0, field + " must not be negative: write a size, as in " + as}
}

// duration: a pattern in the schema; here the text has been read already.
func duration(field string, d *metav1.Duration) rule {
	return rule{d != nil && d.Duration < 0, field + " is a duration in h, m, s or ms, as in 90s or 1h30m"}
}

func names(o metav1.ObjectMeta, longest int, message string) []rule {
	return []rule{
		{o.Name == "", "metadata.name is missing"},
		{o.Name != "" && len(o.Name) > longest, message},
		{o.Name != "" && len(validation.IsDNS1123Subdomain(o.Name)) > 0, fmt.Sprintf("metadata.name %q: write lower-case letters, digits, '-' and '.', starting and ending with a letter or digit", o.Name)},
	}
}

func broken(kind string, o metav1.ObjectMeta, rules []rule) error {
	var errs []error
	for _, r := range rules {
		if r.broken {
			errs = append(errs, fmt.Errorf("%s %s/%s: %s", kind, o.Namespace, o.Name, r.message))
		}
	}
	return errors.Join(errs...)
}

// Revision names what of a Model's spec makes its weights on a device: source,
// precision and context. Another one means loading anew. Each decision asks for
// all of them, so the JSON is written by hand; a test compares it.
func Revision(m *v1alpha1.Model) string {
	s := &m.Spec
	b := make([]byte, 0, 512)
	b = appendString(append(b, `{"URI":`...), s.Source.URI)
	b = appendString(append(b, `,"Digest":`...), s.Source.Digest)
	b = appendString(append(b, `,"Format":`...), string(s.Precision.Format))
	b = append(b, `,"Context":{`...)
	if n := s.Context.MaxTokens; n != 0 {
		b = strconv.AppendInt(append(b, `"maxTokens":`...), int64(n), 10)
	}
	if n := s.Context.Sequences; n != 0 {
		if s.Context.MaxTokens != 0 {
			b = append(b, ',')
		}
		b = strconv.AppendInt(append(b, `"sequences":`...), int64(n), 10)
	}
	return digits(append(b, "}}"...))
}

// appendString appends s as JSON.
func appendString(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			text, err := json.Marshal(s)
			if err != nil {
				panic(fmt.Sprintf("controllers: write %q: %v", s, err)) // any string can be written
			}
			return append(b, text...)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}

// hash of a value's JSON: 16 hexadecimal digits.
func hash(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("controllers: hash %T: %v", v, err)) // only values of ours come here
	}
	return digits(text)
}

func digits(text []byte) string {
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:8])
}

// Key is the identity of a Model on the wire.
func Key(m *v1alpha1.Model) string { return m.Namespace + "/" + m.Name }

func modelSource(m *v1alpha1.Model) worker.Source {
	return worker.Source{URI: m.Spec.Source.URI, Digest: m.Spec.Source.Digest}
}

func modelContext(m *v1alpha1.Model) worker.Context {
	return worker.Context{MaxTokens: int(m.Spec.Context.MaxTokens), Sequences: int(m.Spec.Context.Sequences)}
}

// orElse is *d, or the default for a duration that was not given.
func orElse(d *metav1.Duration, byDefault time.Duration) time.Duration {
	if d == nil {
		return byDefault
	}
	return d.Duration
}
