package v1alpha1

import (
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Model says what to serve, how small it may be made, how many replicas it
// wants and how important it is. Its name is the name that clients send.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:subresource:scale:specpath=.spec.replicas,statuspath=.status.replicas,selectorpath=.status.selector
// +kubebuilder:resource:categories=estiba
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Replicas",type=integer,JSONPath=`.status.replicas`
// +kubebuilder:printcolumn:name="Pool",type=string,JSONPath=`.status.summary.pool`
// +kubebuilder:printcolumn:name="Memory",type=string,JSONPath=`.status.summary.memory`
// +kubebuilder:printcolumn:name="Worker",type=string,priority=1,JSONPath=`.status.summary.worker`
// +kubebuilder:printcolumn:name="Device",type=string,priority=1,JSONPath=`.status.summary.device`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="size(self.metadata.name) <= 63",message="metadata.name is longer than 63 characters: shorten it, and put long names in spec.servedNames"
type Model struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +required
	Spec ModelSpec `json:"spec"`
	// +optional
	Status ModelStatus `json:"status,omitempty"`
}

// ModelList is a list of Models.
//
// +kubebuilder:object:root=true
type ModelList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Model `json:"items"`
}

// ModelSpec is what the owner of a Model asks for.
//
// +kubebuilder:validation:XValidation:rule="!(has(self.replicas) && has(self.autoscaling))",message="spec.replicas and spec.autoscaling exclude each other: write replicas for a fixed number, or autoscaling with min and max"
type ModelSpec struct {
	// Source is where the model's files come from.
	// +required
	Source ModelSource `json:"source"`

	// ServedNames are further names that clients may send.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=253
	ServedNames []string `json:"servedNames,omitempty"`

	// PoolSelector restricts the InferencePools that may hold this Model by their labels.
	// Without it, every pool that allows this namespace may.
	// +optional
	PoolSelector *metav1.LabelSelector `json:"poolSelector,omitempty"`

	// Precision says how small the weights may be made.
	// +optional
	// +kubebuilder:default={format: AsStored}
	Precision Precision `json:"precision,omitempty"`

	// Context is the room that is always kept for requests (the KV floor).
	// +optional
	Context Context `json:"context,omitempty"`

	// Replicas is a fixed number of replicas. At most one of replicas and
	// autoscaling may be given; neither means one replica. A HorizontalPodAutoscaler
	// needs it to be there (the API server cannot read a scale without it), kubectl scale does not.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=1000
	Replicas *int32 `json:"replicas,omitempty"`

	// Autoscaling lets the number of replicas follow the load.
	// +optional
	Autoscaling *Autoscaling `json:"autoscaling,omitempty"`

	// Priority decides who stays when memory is short: the higher one.
	// +optional
	// +kubebuilder:validation:Minimum=-1000000
	// +kubebuilder:validation:Maximum=1000000
	Priority int32 `json:"priority,omitempty"`

	// Eviction says whether a worker may take this model's weights off a
	// device when it is idle and another model needs the room.
	// +optional
	// +kubebuilder:default=WhenNeeded
	Eviction Eviction `json:"eviction,omitempty"`

	// Suspend takes the model off its devices and answers its requests with an error.
	// +optional
	Suspend bool `json:"suspend,omitempty"`
}

// ModelSource is where a model's files come from.
type ModelSource struct {
	// URI names a Hugging Face folder or a .gguf file.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=2048
	// +kubebuilder:validation:XValidation:rule="self.matches('^(file|http|https)://.+')",message="spec.source.uri must start with file://, http:// or https://, for example file:///models/my-model or https://host/my-model.gguf"
	// +kubebuilder:validation:XValidation:rule="!self.startsWith('file://') || self.startsWith('file:///')",message="a file:// uri has an absolute path: write three slashes, as in file:///models/my-model"
	URI string `json:"uri"`

	// Digest pins the content: "sha256:" and 64 hexadecimal digits, of the file, or
	// for a folder of the sorted lines "sha256  path".
	// +optional
	// +kubebuilder:validation:MaxLength=71
	// +kubebuilder:validation:XValidation:rule="self.matches('^sha256:[0-9a-f]{64}$')",message="spec.source.digest must be sha256: followed by 64 lower-case hexadecimal digits, as sha256sum prints them"
	Digest string `json:"digest,omitempty"`
}

// Precision says how small the weights may be made.
type Precision struct {
	// Format of the weights on the device.
	// +optional
	// +kubebuilder:default=AsStored
	Format Format `json:"format,omitempty"`
}

// Format is a format of weights.
//
// +kubebuilder:validation:Enum=AsStored
type Format string

// FormatAsStored keeps the weights as the checkpoint has them.
const FormatAsStored Format = "AsStored"

// Context is the room kept for requests: so many sequences of this length always fit.
type Context struct {
	// MaxTokens is the longest sequence, prompt and answer together. Default: the
	// smaller of the model's own context and 8192. It is clamped to the model's own.
	// +optional
	// +kubebuilder:validation:Minimum=16
	// +kubebuilder:validation:Maximum=16777216
	MaxTokens int32 `json:"maxTokens,omitempty"`
	// Sequences that fit at once at full length. Default 1.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=4096
	Sequences int32 `json:"sequences,omitempty"`
}

// Autoscaling lets the number of replicas follow the load.
//
// +kubebuilder:validation:XValidation:rule="self.min <= self.max",message="spec.autoscaling.min must not be larger than spec.autoscaling.max"
type Autoscaling struct {
	// Min replicas; 0 lets the model sleep, and a request wakes it.
	// +optional
	// +kubebuilder:default=0
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=1000
	Min int32 `json:"min"`
	// Max replicas.
	// +optional
	// +kubebuilder:default=1
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1000
	Max int32 `json:"max"`
	// IdleAfter is how long a model without requests stays resident. Default 5m.
	// +optional
	// +kubebuilder:validation:XValidation:rule="self.matches('^([0-9]{1,5}(h|m|s|ms)){1,4}$')",message="spec.autoscaling.idleAfter is a duration in h, m, s or ms, as in 90s or 1h30m"
	IdleAfter *metav1.Duration `json:"idleAfter,omitempty"`
	// Target is the load per replica that the number of replicas aims for.
	// +optional
	Target Target `json:"target,omitempty"`
}

// Target is a load per replica.
type Target struct {
	// Requests running or waiting at one replica. Default 8.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100000
	Requests int32 `json:"requests,omitempty"`
}

// Eviction says whether an idle model may be taken off its device.
//
// +kubebuilder:validation:Enum=WhenNeeded;Never
type Eviction string

const (
	// EvictWhenNeeded lets another model take the room of this one while it is idle.
	EvictWhenNeeded Eviction = "WhenNeeded"
	// EvictNever keeps the model where it is.
	EvictNever Eviction = "Never"
)

// ModelStatus is what was last seen of a Model.
type ModelStatus struct {
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Replicas is the number of homes that count towards spec.replicas.
	// +optional
	Replicas int32 `json:"replicas"`
	// ReadyReplicas are those that answer requests now, or after a wake-up.
	// +optional
	ReadyReplicas int32 `json:"readyReplicas"`
	// Selector matches the worker pods that hold this model; the scale subresource hands it out.
	// +optional
	Selector string `json:"selector,omitempty"`
	// ServedNames are the names that routes use.
	// +optional
	// +listType=atomic
	ServedNames []string `json:"servedNames,omitempty"`
	// Footprints are what one replica needs on a device, per pool.
	// +optional
	// +listType=atomic
	Footprints []FootprintStatus `json:"footprints,omitempty"`
	// Placements are this model's homes; at most 64 are listed.
	// +optional
	// +listType=atomic
	Placements []Placement `json:"placements,omitempty"`
	// Summary is what `kubectl get` prints.
	// +optional
	Summary ModelSummary `json:"summary,omitempty"`
	// Trial remembers that workers died with this model loading or running.
	// +optional
	Trial *Trial `json:"trial,omitempty"`
}

// FootprintStatus is what one replica of a model needs on a device of a pool.
type FootprintStatus struct {
	Pool      string            `json:"pool"`
	Weights   resource.Quantity `json:"weights"`
	KVFloor   resource.Quantity `json:"kvFloor"`
	Workspace resource.Quantity `json:"workspace"`
	// Measured is false while the figures are estimates from the checkpoint's header.
	// +optional
	Measured bool `json:"measured,omitempty"`
	// MaxTokens is the context that the KV floor was reckoned with, after clamping.
	// +optional
	MaxTokens int32 `json:"maxTokens,omitempty"`
	// Revision of the spec that the figures belong to.
	// +optional
	Revision string `json:"revision,omitempty"`
}

// PlacementState is where the weights of a replica are.
type PlacementState string

// The states of a placement.
const (
	PlacementAssigned PlacementState = "Assigned" // the worker has not reported it yet
	PlacementLoading  PlacementState = "Loading"
	PlacementResident PlacementState = "Resident"
	PlacementHost     PlacementState = "Host"
	PlacementDisk     PlacementState = "Disk"
	PlacementWaiting  PlacementState = "Waiting" // there is no room for it on the device now
	PlacementFailed   PlacementState = "Failed"
	PlacementDraining PlacementState = "Draining"
)

// Placement is one home of a model.
type Placement struct {
	Pool    string         `json:"pool"`
	Worker  string         `json:"worker"`
	Devices []string       `json:"devices,omitempty"`
	State   PlacementState `json:"state"`
	// Since when the placement is in this state.
	// +optional
	Since metav1.Time `json:"since,omitempty"`
	// Reason says why this device was chosen, or what went wrong there.
	// +optional
	Reason string `json:"reason,omitempty"`
}

// ModelSummary is what `kubectl get` prints.
type ModelSummary struct {
	Pool   string `json:"pool,omitempty"`
	Memory string `json:"memory,omitempty"`
	Worker string `json:"worker,omitempty"`
	Device string `json:"device,omitempty"`
}

// Trial remembers that workers died while they were loading or running this model.
type Trial struct {
	// Revision of the spec under trial; a new one ends it.
	Revision string `json:"revision"`
	// Deaths of workers that this revision is suspected of.
	Deaths int32 `json:"deaths"`
	// Since is the time of the last death.
	Since metav1.Time `json:"since"`
	// Worker that died last, and its process.
	// +optional
	Worker string `json:"worker,omitempty"`
	// +optional
	Instance string `json:"instance,omitempty"`
	// Passed says that the trial after the death was passed; the death is
	// forgotten some time after it, and a further one before that counts.
	// +optional
	Passed bool `json:"passed,omitempty"`
}
