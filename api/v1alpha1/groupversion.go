// Package v1alpha1 has the custom resources of Estiba: Model and InferencePool.
// Start with Model; every reason that a condition may give is in conditions.go.
//
// +kubebuilder:object:generate=true
// +groupName=estiba.dev
package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupVersion of the custom resources.
var GroupVersion = schema.GroupVersion{Group: "estiba.dev", Version: "v1alpha1"}

// AddToScheme registers the custom resources.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion, &Model{}, &ModelList{}, &InferencePool{}, &InferencePoolList{})
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
}
