// Package top shows the stowage at a glance: each device with the models on it,
// and the models that are nowhere. Start with Show.
package top

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/controllers"
	"github.com/estiba/estiba/internal/history"
	"github.com/estiba/estiba/internal/kubeconfig"
	"github.com/estiba/estiba/internal/terminal"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Options say where to look.
type Options struct {
	Server    string // address of an `estiba serve`; empty: the cluster of the kubeconfig
	Namespace string // empty: all
	Estiba    string // namespace of the operator in a cluster; empty: where its lease is
	JSON      bool
}

// patience is how long a server may be silent.
const patience = 15 * time.Second

// Stowage is what is where.
type Stowage struct {
	Pools  []v1alpha1.InferencePool `json:"pools"`
	Models []v1alpha1.Model         `json:"models"`
	// Stowage is what the operator's latest decision makes of each pool; nil: the operator
	// could not be asked, and Unasked says why.
	Stowage []controllers.Stowage `json:"stowage,omitempty"`
	Unasked string                `json:"unasked,omitempty"`
}

// Show reads the stowage and writes it to w.
func Show(ctx context.Context, w io.Writer, o Options) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	read := fromCluster
	if o.Server != "" {
		read = fromServer
	}
	s, err := read(ctx, o)
	if err != nil {
		return err
	}
	s.ask(ctx, o)
	if o.JSON {
		return json.NewEncoder(w).Encode(s)
	}
	if o.Namespace != "" && len(s.Pools) == 0 && len(s.Models) == 0 {
		return fmt.Errorf("namespace %q has no InferencePool and no Model: leave out --namespace to see all", o.Namespace)
	}
	return s.write(terminal.Writer(w))
}

// ask the operator for what statuses do not have: devices. Who may not ask it sees the statuses.
func (s *Stowage) ask(ctx context.Context, o Options) {
	latest, err := history.Latest(ctx, history.Options{Server: o.Server, Namespace: o.Estiba})
	if err != nil {
		s.Unasked = err.Error()
		return
	}
	for _, p := range controllers.StowageOf(latest.Seen) {
		if o.Namespace == "" || strings.HasPrefix(p.Pool, o.Namespace+"/") {
			s.Stowage = append(s.Stowage, p)
		}
	}
}

func fromServer(ctx context.Context, o Options) (Stowage, error) {
	var (
		pools  v1alpha1.InferencePoolList
		models v1alpha1.ModelList
	)
	address, err := history.Address(o.Server)
	if err != nil {
		return Stowage{}, err
	}
	base := address.JoinPath("apis", v1alpha1.GroupVersion.String())
	if o.Namespace != "" {
		base = base.JoinPath("namespaces", o.Namespace)
	}
	if err := get(ctx, base.JoinPath("inferencepools"), &pools); err != nil {
		return Stowage{}, err
	}
	if err := get(ctx, base.JoinPath("models"), &models); err != nil {
		return Stowage{}, err
	}
	return Stowage{Pools: pools.Items, Models: models.Items}, nil
}

func get(ctx context.Context, from *url.URL, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from.String(), nil)
	if err != nil {
		return err
	}
	return history.Exchange(ctx, http.DefaultClient, req, patience, func(body io.Reader) error {
		return json.NewDecoder(io.LimitReader(body, 256<<20)).Decode(into)
	})
}

func fromCluster(ctx context.Context, o Options) (Stowage, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	config, err := kubeconfig.Get("")
	if err != nil {
		return Stowage{}, fmt.Errorf("%w (name a cluster with KUBECONFIG, or an estiba serve with --server)", err)
	}
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		return Stowage{}, err
	}
	c, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		return Stowage{}, fmt.Errorf("connect to the cluster: %w", err)
	}
	var (
		pools  v1alpha1.InferencePoolList
		models v1alpha1.ModelList
	)
	if err := c.List(ctx, &pools, client.InNamespace(o.Namespace)); err != nil {
		return Stowage{}, fmt.Errorf("list inferencepools.estiba.dev: %w", err)
	}
	if err := c.List(ctx, &models, client.InNamespace(o.Namespace)); err != nil {
		return Stowage{}, fmt.Errorf("list models.estiba.dev: %w", err)
	}
	return Stowage{Pools: pools.Items, Models: models.Items}, nil
}

func (s Stowage) write(w io.Writer) error {
	if len(s.Stowage) == 0 {
		return s.table(w)
	}
	shown := map[string]bool{}
	for i, p := range s.Stowage {
		if i > 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprint(w, p.Text())
		for _, k := range p.Devices {
			for _, h := range k.Homes {
				shown[h.Model] = true
			}
		}
		for _, q := range p.Pending {
			shown[q.Model] = true
		}
	}
	const most = 20
	n := 0
	for _, m := range s.Models {
		key := m.Namespace + "/" + m.Name
		if shown[key] {
			continue
		}
		if n++; n == 1 {
			fmt.Fprintln(w, "\nWithout a home:")
		}
		if n <= most {
			_, reason := condition(m.Status.Conditions)
			fmt.Fprintf(w, "  %s, %s: %s\n", key, reason, terminal.Line(dash(message(m.Status.Conditions))))
		}
	}
	if n > most {
		fmt.Fprintf(w, "  and %d more; --json shows all\n", n-most)
	}
	_, err := fmt.Fprintln(w, "\n# on the device   > on its way   - asleep   . free   x other processes   ? looks for a home")
	return err
}

// message of condition Ready.
func message(conditions []metav1.Condition) string {
	if c := meta.FindStatusCondition(conditions, v1alpha1.ConditionReady); c != nil {
		return c.Message
	}
	return "Nothing has been decided yet."
}

// table is what statuses have.
func (s Stowage) table(w io.Writer) error {
	if s.Unasked != "" {
		fmt.Fprintf(w, "Devices are not shown, since the operator could not be asked: %s.\n\n", strings.TrimSuffix(s.Unasked, "."))
	}
	several := severalNamespaces(s)
	name := func(o metav1.ObjectMeta) string {
		if several {
			return o.Namespace + "/" + o.Name
		}
		return o.Name
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "POOL\tREADY\tWORKERS\tMODELS\tMEMORY (USED / CAPACITY)\tWHY")
	for _, p := range s.Pools {
		ready, _ := condition(p.Status.Conditions)
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%s\t%s\n", name(p.ObjectMeta), ready, dash(p.Status.Summary.Workers), p.Status.Models, dash(p.Status.Summary.Memory), terminal.Line(trouble(p.Status.Conditions)))
	}
	fmt.Fprintln(t)
	fmt.Fprintln(t, "MODEL\tREADY\tREASON\tREPLICAS\tMEMORY\tWHERE\tSTATE\tWHY")
	for _, m := range s.Models {
		ready, reason := condition(m.Status.Conditions)
		row := func(where, state, why string) {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", name(m.ObjectMeta), ready, reason,
				fmt.Sprintf("%d/%d", m.Status.ReadyReplicas, max(m.Status.Replicas, wanted(m))), dash(m.Status.Summary.Memory), where, state, why)
		}
		trouble := trouble(m.Status.Conditions)
		if len(m.Status.Placements) == 0 {
			row("-", "-", terminal.Line(trouble))
		}
		for _, p := range m.Status.Placements {
			why := p.Reason
			if trouble != "" {
				why = trouble
			}
			row(p.Worker+"/"+strings.Join(p.Devices, ","), string(p.State), terminal.Line(why))
		}
	}
	return t.Flush()
}

func severalNamespaces(s Stowage) bool {
	var names []string
	for _, p := range s.Pools {
		names = append(names, p.Namespace)
	}
	for _, m := range s.Models {
		names = append(names, m.Namespace)
	}
	slices.Sort(names)
	return len(slices.Compact(names)) > 1
}

func condition(conditions []metav1.Condition) (status, reason string) {
	c := meta.FindStatusCondition(conditions, v1alpha1.ConditionReady)
	if c == nil {
		return "-", "-"
	}
	return string(c.Status), c.Reason
}

// trouble is the message of the first condition that is not as it should be.
func trouble(conditions []metav1.Condition) string {
	for _, bad := range []struct {
		condition string
		status    metav1.ConditionStatus
	}{
		{v1alpha1.ConditionStalled, metav1.ConditionTrue},
		{v1alpha1.ConditionReady, metav1.ConditionFalse},
		{v1alpha1.ConditionPlaced, metav1.ConditionFalse},
		{v1alpha1.ConditionDegraded, metav1.ConditionTrue},
	} {
		if c := meta.FindStatusCondition(conditions, bad.condition); c != nil && c.Status == bad.status {
			return c.Message
		}
	}
	if len(conditions) == 0 {
		return "Nothing has been decided yet."
	}
	return ""
}

// wanted is the number of replicas that the spec asks for.
func wanted(m v1alpha1.Model) int32 {
	switch {
	case m.Spec.Autoscaling != nil:
		return m.Spec.Autoscaling.Min
	case m.Spec.Replicas != nil:
		return *m.Spec.Replicas
	}
	return 1
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
