package controllers

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	corev1apply "k8s.io/client-go/applyconfigurations/core/v1"
	metav1apply "k8s.io/client-go/applyconfigurations/meta/v1"
	networkingv1apply "k8s.io/client-go/applyconfigurations/networking/v1"
	policyv1apply "k8s.io/client-go/applyconfigurations/policy/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/internal/fleet"
)

// Policy says whether each pool gets a NetworkPolicy: then only Estiba's
// operator and gateways reach its workers, and whoever is to read their metrics.
// A policy knows no paths: those may ask the workers for completions too.
type Policy struct {
	Enabled     bool
	MetricsFrom []networkingv1apply.NetworkPolicyPeerApplyConfiguration
}

// furnished is what was last done for a pool.
type furnished struct {
	available int32
	at        time.Time
	taken     string // which object with a name that the pool needs is not the pool's
}

// furnish writes what belongs to a pool: the token for its workers, their
// budget and their policy. Whoever may create pools must not write over other people's objects:
// what the pool does not own is left alone, and the pool's condition names it.
func (r *Reconciler) furnish(ctx context.Context, p *Pool, available int32, now time.Time) error {
	f := r.furnished[p.UID]
	if wait := now.Sub(f.at); f.taken == "" && f.available == available && wait < reapply || f.taken != "" && wait < retry {
		return nil
	}
	next := furnished{available: available, at: now}
	for _, o := range r.children(p, available) {
		taken, err := r.writeChild(ctx, p, o)
		if err != nil {
			return fmt.Errorf("write what belongs to InferencePool %s: %w", p.Key(), err)
		}
		if taken {
			next.taken = fmt.Sprintf("%s %s/%s is not this pool's: rename it, or give the pool another name.", o.GetKind(), o.GetNamespace(), o.GetName())
			break
		}
	}
	r.furnished[p.UID] = next
	if next.taken != f.taken {
		r.wake()
	}
	return nil
}

// children are the objects that belong to p.
func (r *Reconciler) children(p *Pool, available int32) []*unstructured.Unstructured {
	owner := metav1apply.OwnerReference().WithAPIVersion(v1alpha1.GroupVersion.String()).WithKind("InferencePool").WithName(p.Name).WithUID(p.UID).WithController(true)
	labels := map[string]string{v1alpha1.LabelPool: p.Name, "app.kubernetes.io/part-of": "estiba"}
	workers := map[string]string{v1alpha1.LabelPool: p.Name, v1alpha1.LabelComponent: "worker"}
	secret := corev1apply.Secret(tokenSecret(p.Name), p.Namespace).WithOwnerReferences(owner).WithLabels(labels).
		WithData(map[string][]byte{"token": []byte(fleet.PoolToken(r.options.Key, p.Key()))})
	budget := policyv1apply.PodDisruptionBudget(p.Name, p.Namespace).WithOwnerReferences(owner).WithLabels(labels).
		WithSpec(policyv1apply.PodDisruptionBudgetSpec().
			WithMinAvailable(intstr.FromInt32(available)).
			WithUnhealthyPodEvictionPolicy(policyv1.AlwaysAllow).
			WithSelector(metav1apply.LabelSelector().WithMatchLabels(workers)))
	all := []*unstructured.Unstructured{plain(secret), plain(budget)}
	if r.options.Policy.Enabled {
		all = append(all, plain(networkingv1apply.NetworkPolicy(p.Name, p.Namespace).WithOwnerReferences(owner).WithLabels(labels).WithSpec(r.policy(workers))))
	}
	return all
}

// policy lets operator and gateways reach the workers, and those who read metrics.
func (r *Reconciler) policy(workers map[string]string) *networkingv1apply.NetworkPolicySpecApplyConfiguration {
	port := networkingv1apply.NetworkPolicyPort().WithProtocol(corev1.ProtocolTCP).WithPort(intstr.FromInt32(workerPort))
	estiba := networkingv1apply.NetworkPolicyPeer().
		WithNamespaceSelector(metav1apply.LabelSelector().WithMatchLabels(map[string]string{corev1.LabelMetadataName: r.options.Namespace})).
		WithPodSelector(metav1apply.LabelSelector().WithMatchLabels(map[string]string{v1alpha1.LabelName: "estiba"}).
			WithMatchExpressions(metav1apply.LabelSelectorRequirement().WithKey(v1alpha1.LabelComponent).WithOperator(metav1.LabelSelectorOpIn).WithValues("operator", "gateway")))
	spec := networkingv1apply.NetworkPolicySpec().
		WithPodSelector(metav1apply.LabelSelector().WithMatchLabels(workers)).
		WithPolicyTypes(networkingv1.PolicyTypeIngress).
		WithIngress(networkingv1apply.NetworkPolicyIngressRule().WithFrom(estiba).WithPorts(port))
	if from := r.options.Policy.MetricsFrom; len(from) > 0 { // without peers a rule lets everybody in
		rule := networkingv1apply.NetworkPolicyIngressRule().WithPorts(port)
		rule.From = from
		spec.WithIngress(rule)
	}
	return spec
}

// plain is an object with only the fields that are given.
func plain(o runtime.ApplyConfiguration) *unstructured.Unstructured {
	u := &unstructured.Unstructured{}
	text, err := json.Marshal(o)
	if err == nil {
		err = json.Unmarshal(text, &u.Object)
	}
	if err != nil {
		panic(fmt.Sprintf("controllers: write %T: %v", o, err)) // only values of ours come here
	}
	return u
}

// writeChild creates an object of p's, or writes it again; taken: one with its
// name is there, and is not p's.
func (r *Reconciler) writeChild(ctx context.Context, p *Pool, o *unstructured.Unstructured) (taken bool, err error) {
	is, err := r.owned(ctx, o, "uid", string(p.UID))
	switch {
	case apierrors.IsNotFound(err):
		return false, r.client.Create(ctx, o.DeepCopy(), client.FieldOwner(fieldOwner))
	case apierrors.IsInvalid(err):
		// A pool of this name that was there before had it, and it is about to go with that.
		if _, err = r.owned(ctx, o, "kind", "InferencePool", "name", p.Name); apierrors.IsInvalid(err) {
			return true, nil
		}
		return false, err
	case err != nil:
		return false, err
	}
	o = o.DeepCopy()
	o.SetUID(is.UID) // another one by now is not ours
	return false, r.client.Apply(ctx, client.ApplyConfigurationFromUnstructured(o), client.FieldOwner(fieldOwner), client.ForceOwnership)
}

// owned looks whether the owner of an object has the fields, and is Invalid if
// not. It is a patch that changes nothing, with an answer that has metadata
// only: the operator may not read Secrets.
func (r *Reconciler) owned(ctx context.Context, o *unstructured.Unstructured, fields ...string) (*metav1.PartialObjectMetadata, error) {
	type test struct {
		Op    string `json:"op"`
		Path  string `json:"path"`
		Value string `json:"value"`
	}
	var patch []test
	for i := 0; i < len(fields); i += 2 {
		patch = append(patch, test{"test", "/metadata/ownerReferences/0/" + fields[i], fields[i+1]})
	}
	text, err := json.Marshal(patch)
	if err != nil {
		return nil, err
	}
	is := &metav1.PartialObjectMetadata{}
	is.SetGroupVersionKind(o.GroupVersionKind())
	is.Namespace, is.Name = o.GetNamespace(), o.GetName()
	return is, r.client.Patch(ctx, is, client.RawPatch(types.JSONPatchType, text))
}
