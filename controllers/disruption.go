package controllers

import (
	corev1 "k8s.io/api/core/v1"

	"github.com/estiba/estiba/api/worker"
)

// By these annotations of a pod, Cluster Autoscaler and Karpenter know whether
// they may take its node away when they like. A pod whose controller Cluster
// Autoscaler does not know would keep its node for ever without the first.
const (
	annotationSafeToEvict  = "cluster-autoscaler.kubernetes.io/safe-to-evict"
	annotationDoNotDisrupt = "karpenter.sh/do-not-disrupt"
)

// Disruption is what the annotations of a worker's pod say.
type Disruption struct {
	SafeToEvict  string `json:"safeToEvict,omitzero"`  // "true" or "false"
	DoNotDisrupt string `json:"doNotDisrupt,omitzero"` // "true"; empty: there is no such annotation
}

// atWill says that a worker's node may go at any time: nothing is awake there,
// and a request for what sleeps wakes it elsewhere.
var atWill = Disruption{SafeToEvict: "true"}

// kept says that a worker's node is to stay, or, where its removal has been
// announced, that its pods are not to be evicted: Estiba moves what it holds,
// drains the worker and deletes the pod itself. It decides too whether a worker
// is worth emptying; models that could move are no invitation to make them.
var kept = Disruption{SafeToEvict: "false", DoNotDisrupt: "true"}

// disruption is what a pod's annotations say now.
func disruption(pod *corev1.Pod) Disruption {
	return Disruption{pod.Annotations[annotationSafeToEvict], pod.Annotations[annotationDoNotDisrupt]}
}

// annotate makes a pod's annotations say d.
func (d Disruption) annotate(pod *corev1.Pod) {
	if pod.Annotations == nil {
		pod.Annotations = map[string]string{}
	}
	for name, value := range map[string]string{annotationSafeToEvict: d.SafeToEvict, annotationDoNotDisrupt: d.DoNotDisrupt} {
		if value == "" {
			delete(pod.Annotations, name)
		} else {
			pod.Annotations[name] = value
		}
	}
}

// disruption is what the pod of s should say. A silent worker holds what it was
// last known to hold.
func (s *station) disruption() Disruption {
	if s.asleep() {
		return atWill
	}
	return kept
}

// asleep: nothing is awake on the worker, on its way to the device, or running.
func (s *station) asleep() bool {
	for _, h := range s.homes {
		if h.awake || h.model == nil {
			return false
		}
	}
	if s.Report == nil {
		return true
	}
	for _, h := range s.Report.Homes {
		switch h.Phase {
		case worker.PhaseResident, worker.PhaseLoading, worker.PhaseFetching:
			return false
		}
		if h.Running+h.Waiting > 0 {
			return false
		}
	}
	return true
}
