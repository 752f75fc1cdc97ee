package gateway

import "github.com/estiba/estiba/api/v1alpha1"

// FromResources are Model resources as a gateway sees them.
func FromResources(resources []v1alpha1.Model) []Model {
	var models []Model
	for _, r := range resources {
		m := Model{
			Key:       r.Namespace + "/" + r.Name,
			Names:     append([]string{r.Name}, r.Spec.ServedNames...),
			Created:   r.CreationTimestamp.Time,
			Suspended: r.Spec.Suspend || r.Spec.Replicas != nil && *r.Spec.Replicas == 0,
		}
		for _, c := range r.Status.Conditions {
			switch c.Type {
			case v1alpha1.ConditionStalled:
				// A condition of an older spec says nothing about this one.
				m.Stalled = c.Status == "True" && c.ObservedGeneration == r.Generation
			case v1alpha1.ConditionReady:
				m.Reason, m.Message = c.Reason, c.Message
			}
		}
		models = append(models, m)
	}
	return models
}
