package v1alpha1

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// InferencePool is a set of like worker pods: on which accelerators, how many,
// and under which packing and scaling rules.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:subresource:scale:specpath=.spec.replicas,statuspath=.status.workers,selectorpath=.status.selector
// +kubebuilder:resource:shortName=ipool,categories=estiba
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Workers",type=string,JSONPath=`.status.summary.workers`
// +kubebuilder:printcolumn:name="Models",type=integer,JSONPath=`.status.models`
// +kubebuilder:printcolumn:name="Memory",type=string,JSONPath=`.status.summary.memory`
// +kubebuilder:printcolumn:name="Utilization",type=string,priority=1,JSONPath=`.status.summary.utilization`
// +kubebuilder:printcolumn:name="Power",type=string,priority=1,JSONPath=`.status.summary.power`
// +kubebuilder:printcolumn:name="Reason",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="size(self.metadata.name) <= 50 && !self.metadata.name.contains('.')",message="metadata.name must have at most 50 characters and no dots: worker pods are named after it"
type InferencePool struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +optional
	Spec InferencePoolSpec `json:"spec,omitempty"`
	// +optional
	Status InferencePoolStatus `json:"status,omitempty"`
}

// InferencePoolList is a list of InferencePools.
//
// +kubebuilder:object:root=true
type InferencePoolList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []InferencePool `json:"items"`
}

// InferencePoolSpec is what the owner of a pool asks for.
//
// +kubebuilder:validation:XValidation:rule="!has(self.replicas) || !has(self.workers) || (self.workers.min <= self.replicas && self.replicas <= self.workers.max)",message="spec.replicas must lie between spec.workers.min and spec.workers.max; raise workers.max or lower replicas"
type InferencePoolSpec struct {
	// Workers bounds the number of worker pods; the placement loop chooses within.
	// +optional
	// +kubebuilder:default={min: 0, max: 1}
	Workers WorkerRange `json:"workers,omitempty"`

	// Replicas fixes the number of workers within spec.workers. It is the scale path for other autoscalers,
	// and a HorizontalPodAutoscaler needs it to be there.
	// +optional
	// +kubebuilder:validation:Minimum=0
	Replicas *int32 `json:"replicas,omitempty"`

	// Template is a pod template. What Estiba sets is merged over it: the
	// container named "worker" runs the worker.
	// +optional
	// +kubebuilder:validation:Schemaless
	// +kubebuilder:validation:Type=object
	// +kubebuilder:pruning:PreserveUnknownFields
	Template *runtime.RawExtension `json:"template,omitempty"`

	// Device is what one worker's device is expected to be, for a pool without workers.
	// +optional
	Device DeviceSpec `json:"device,omitempty"`

	// Memory says what is kept free on a device, and how much host memory a worker may use.
	// +optional
	Memory MemorySpec `json:"memory,omitempty"`

	// Cache is the disk cache for fetched models.
	// +optional
	Cache CacheSpec `json:"cache,omitempty"`

	// ModelRoots are the folders of a worker below which file:// may read. None by default.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MaxLength=1024
	// +kubebuilder:validation:XValidation:rule="self.all(r, r.startsWith('/'))",message="each of spec.modelRoots is an absolute path, as in /models"
	ModelRoots []string `json:"modelRoots,omitempty"`

	// AllowedNamespaces says whose Models may come here.
	// +optional
	// +kubebuilder:default={from: Same}
	AllowedNamespaces AllowedNamespaces `json:"allowedNamespaces,omitempty"`

	// Moves bounds how often models that serve change their home so that others fit, or that a worker can be given back.
	// +optional
	Moves MovesSpec `json:"moves,omitempty"`

	// Update says how workers are replaced when the template changes.
	// +optional
	Update UpdateSpec `json:"update,omitempty"`

	// ScaleDown says when an idle worker is given back.
	// +optional
	ScaleDown ScaleDownSpec `json:"scaleDown,omitempty"`
}

// WorkerRange bounds the number of workers.
//
// +kubebuilder:validation:XValidation:rule="self.min <= self.max",message="spec.workers.min must not be larger than spec.workers.max"
type WorkerRange struct {
	// +optional
	// +kubebuilder:default=0
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=10000
	Min int32 `json:"min"`
	// +optional
	// +kubebuilder:default=1
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=10000
	Max int32 `json:"max"`
}

// DeviceSpec is what one worker's device is expected to be.
type DeviceSpec struct {
	// Memory of one device.
	// +optional
	// +kubebuilder:validation:XValidation:rule="!string(self).startsWith('-')",message="spec.device.memory must not be negative: write a size, as in 16Gi"
	Memory *resource.Quantity `json:"memory,omitempty"`
}

// MemorySpec says what is kept free and how much of the host a worker may use.
type MemorySpec struct {
	// Headroom is kept free on every device, in per cent. Default 5%.
	// +optional
	// +kubebuilder:validation:MaxLength=4
	// +kubebuilder:validation:XValidation:rule="self.matches('^([0-9]|[1-4][0-9]|50)%$')",message="spec.memory.headroom is a whole percentage from 0% to 50%, as in 5%"
	Headroom string `json:"headroom,omitempty"`
	// Host is the size of the host memory slab of a worker.
	// +optional
	// +kubebuilder:validation:XValidation:rule="!string(self).startsWith('-')",message="spec.memory.host must not be negative: write a size, as in 8Gi"
	Host *resource.Quantity `json:"host,omitempty"`
}

// CacheSpec is the disk cache of a worker.
type CacheSpec struct {
	// Size of the cache. Default 10Gi.
	// +optional
	// +kubebuilder:validation:XValidation:rule="!string(self).startsWith('-')",message="spec.cache.size must not be negative: write a size, as in 10Gi"
	Size *resource.Quantity `json:"size,omitempty"`
}

// NamespacesFrom says where Models may come from.
//
// +kubebuilder:validation:Enum=Same;All;Selector
type NamespacesFrom string

// Where the Models of a pool may come from.
const (
	NamespacesSame     NamespacesFrom = "Same"
	NamespacesAll      NamespacesFrom = "All"
	NamespacesSelector NamespacesFrom = "Selector"
)

// AllowedNamespaces says whose Models may come to a pool.
//
// +kubebuilder:validation:XValidation:rule="(self.from == 'Selector') == has(self.selector)",message="spec.allowedNamespaces.selector goes with from: Selector, and only with it"
type AllowedNamespaces struct {
	// +optional
	// +kubebuilder:default=Same
	From NamespacesFrom `json:"from,omitempty"`
	// +optional
	Selector *metav1.LabelSelector `json:"selector,omitempty"`
	// MaxPriority bounds the priority of Models from other namespaces. Default 0.
	// +optional
	MaxPriority *int32 `json:"maxPriority,omitempty"`
}

// MovesSpec bounds the moves of a pool. A home whose neighbours keep it off its device moves in any case, and
// so does what is on a worker that goes.
type MovesSpec struct {
	// MaxPerHour of models that are on a device. Default 12; 0: none.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=120
	MaxPerHour *int32 `json:"maxPerHour,omitempty"`
	// MaxBytesPerHour bounds the memory of those that move. Default: no bound.
	// +optional
	// +kubebuilder:validation:XValidation:rule="!string(self).startsWith('-')",message="spec.moves.maxBytesPerHour must not be negative: write a size, as in 100Gi"
	MaxBytesPerHour *resource.Quantity `json:"maxBytesPerHour,omitempty"`
}

// UpdateSpec says how workers are replaced.
type UpdateSpec struct {
	// Type of the update.
	// +optional
	// +kubebuilder:validation:Enum=Rolling
	Type string `json:"type,omitempty"`
	// MaxUnavailable workers during an update. Default 1.
	// +optional
	// +kubebuilder:validation:Minimum=1
	MaxUnavailable int32 `json:"maxUnavailable,omitempty"`
	// Drain is how long running requests may go on. Default 5m.
	// +optional
	// +kubebuilder:validation:XValidation:rule="self.matches('^([0-9]{1,5}(h|m|s|ms)){1,4}$')",message="spec.update.drain is a duration in h, m, s or ms, as in 90s or 1h30m"
	Drain *metav1.Duration `json:"drain,omitempty"`
}

// ScaleDownSpec says when an idle worker is given back.
type ScaleDownSpec struct {
	// After so long with nothing resident, loading or running. Default 10m.
	// +optional
	// +kubebuilder:validation:XValidation:rule="self.matches('^([0-9]{1,5}(h|m|s|ms)){1,4}$')",message="spec.scaleDown.after is a duration in h, m, s or ms, as in 90s or 1h30m"
	After *metav1.Duration `json:"after,omitempty"`
}

// InferencePoolStatus is what was last seen of a pool.
type InferencePoolStatus struct {
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Workers are the pool's pods.
	// +optional
	Workers int32 `json:"workers"`
	// ReadyWorkers are those that take assignments.
	// +optional
	ReadyWorkers int32 `json:"readyWorkers"`
	// Selector matches the pool's worker pods.
	// +optional
	Selector string `json:"selector,omitempty"`
	// Devices of all workers.
	// +optional
	Devices int32 `json:"devices,omitempty"`
	// Models that have a home here.
	// +optional
	Models int32 `json:"models"`
	// +optional
	Memory MemoryStatus `json:"memory,omitempty"`
	// Device is what the last worker's device really was.
	// +optional
	Device DeviceStatus `json:"device,omitempty"`
	// Accelerators are those of the devices that tell about themselves, at most 64. What moves a little stays as it was
	// written: /metrics of the workers follow it.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=64
	Accelerators []AcceleratorStatus `json:"accelerators,omitempty"`
	// Moves of the last hour that count towards spec.moves, the oldest first.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=120
	Moves []MoveStatus `json:"moves,omitempty"`
	// Summary is what `kubectl get` prints.
	// +optional
	Summary PoolSummary `json:"summary,omitempty"`
}

// MoveStatus is a move that has begun.
type MoveStatus struct {
	// Model that moves, as "namespace/name".
	Model string `json:"model"`
	// From and To are workers.
	From string `json:"from"`
	To   string `json:"to"`
	// At is when it began.
	At metav1.Time `json:"at"`
	// Bytes that the model takes on a device.
	// +optional
	Bytes resource.Quantity `json:"bytes,omitempty"`
	// Reason is why it moves.
	// +optional
	Reason string `json:"reason,omitempty"`
}

// AcceleratorStatus is a device as its own instruments show it.
type AcceleratorStatus struct {
	Worker string `json:"worker"`
	Device string `json:"device"`
	// State is Healthy, Degraded (it is avoided while others have room) or Lost (nothing can be computed on it).
	State string `json:"state"`
	// Reason of a state that is not Healthy, in a word: Heat, XID79.
	// +optional
	Reason string `json:"reason,omitempty"`
	// Since when it has been in that state.
	// +optional
	Since *metav1.Time `json:"since,omitempty"`
	// Memory of the device.
	// +optional
	Memory *resource.Quantity `json:"memory,omitempty"`
	// Others is what other processes hold of it.
	// +optional
	Others *resource.Quantity `json:"others,omitempty"`
	// Capacity is what models may use, and Allocated what they do.
	// +optional
	Capacity resource.Quantity `json:"capacity,omitempty"`
	// +optional
	Allocated resource.Quantity `json:"allocated,omitempty"`
	// Utilization is the share of time in which it computes, in per cent.
	// +optional
	Utilization *int32 `json:"utilization,omitempty"`
	// Power in watts.
	// +optional
	Power *int32 `json:"power,omitempty"`
}

// DeviceStatus is a device as a worker of this pool last reported it.
type DeviceStatus struct {
	// Memory that one device's claim gives to models.
	// +optional
	Memory *resource.Quantity `json:"memory,omitempty"`
	// Template is the hash of the pod template that this was seen with; another one may bring another device.
	// +optional
	Template string `json:"template,omitempty"`
}

// MemoryStatus sums the devices of a pool.
type MemoryStatus struct {
	// +optional
	Capacity resource.Quantity `json:"capacity,omitempty"`
	// +optional
	Allocated resource.Quantity `json:"allocated,omitempty"`
}

// PoolSummary is what `kubectl get` prints.
type PoolSummary struct {
	Workers string `json:"workers,omitempty"` // "1/2": ready of all
	Memory  string `json:"memory,omitempty"`  // "3.1Gi / 76Gi"
	// Utilization is the mean of the devices that tell it.
	Utilization string `json:"utilization,omitempty"` // "41%"
	// Power is the sum of those.
	Power string `json:"power,omitempty"` // "412W"
}

// PodTemplate is the shape of spec.template once it has been decoded.
type PodTemplate = corev1.PodTemplateSpec
