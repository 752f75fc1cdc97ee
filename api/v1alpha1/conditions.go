package v1alpha1

// The types of conditions. Ready means that a request would be answered now or
// after waking the model. Reconciling and Stalled are bad when true; Stalled
// only when a change of the spec is needed.
const (
	ConditionReady       = "Ready"
	ConditionPlaced      = "Placed"
	ConditionReconciling = "Reconciling"
	ConditionStalled     = "Stalled"
	// ConditionDegraded, of a pool whose devices are watched: some of them are degraded or lost. Bad when true.
	ConditionDegraded = "Degraded"
)

// The reasons of conditions. Each line says what a person can do, and how a message looks.
const (
	// ReasonServing: nothing to do.
	ReasonServing = "Serving" // "2 of 2 replicas answer requests."
	// ReasonScaledToZero: nothing to do, a request wakes it.
	ReasonScaledToZero = "ScaledToZero" // "Nothing is resident; a request wakes the model on worker a100-x7k2p."
	// ReasonWaitingForWorker: wait, or raise spec.workers of a pool.
	ReasonWaitingForWorker = "WaitingForWorker" // "Pool a100 has no ready worker yet; 1 is starting."
	// ReasonWaitingForNode: the cluster has no node for a worker pod; add one, or let an autoscaler.
	ReasonWaitingForNode = "WaitingForNode" // "Pod a100-x7k2p waits for a node: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
	// ReasonDoesNotFit: allow a smaller precision or context, let the pool grow, or remove what is in the way.
	ReasonDoesNotFit = "DoesNotFit" // "Needs 14.2 GiB; the largest free device has 9.8 GiB."
	// ReasonNoPoolMatches: create a pool, or mend poolSelector or allowedNamespaces.
	ReasonNoPoolMatches = "NoPoolMatches"
	// ReasonSourceUnavailable: make the source reachable from the workers; it is tried again.
	ReasonSourceUnavailable = "SourceUnavailable"
	// ReasonDigestMismatch: mend spec.source.digest or the source.
	ReasonDigestMismatch = "DigestMismatch"
	// ReasonInvalidModel: the files are broken; the message names file and tensor.
	ReasonInvalidModel = "InvalidModel"
	// ReasonUnsupportedModel: the files are sound, but use what this version cannot run.
	ReasonUnsupportedModel = "UnsupportedModel"
	// ReasonLoading: wait.
	ReasonLoading = "Loading"
	// ReasonDraining: wait; running requests end first.
	ReasonDraining = "Draining"
	// ReasonMoving: wait; the model goes on serving at its old home until the new one is ready.
	ReasonMoving = "Moving" // "Moves from worker a100-x7k2p to a100-9qzt4: loading there (40 %)."
	// ReasonEvicted: raise spec.priority, let a pool grow, or wait; the model comes back when there is room.
	ReasonEvicted = "Evicted" // "Gave up 14.2 GiB on worker a100-x7k2p to default/big (priority 10, this one 0). Needs 14.2 GiB; ..."
	// ReasonWaitingForConfirmation: a plan would take away too much at once; look at it, then confirm it.
	ReasonWaitingForConfirmation = "WaitingForConfirmation" // "3 of 9 resident models would go. Confirm with ..."
	// ReasonRefused: the worker would not load the model; the message has its account.
	ReasonRefused = "Refused"
	// ReasonWorkerLost: wait; the model gets another home.
	ReasonWorkerLost = "WorkerLost"
	// ReasonDeviceLost: wait, the models get other homes; mend or replace the device as the message says.
	ReasonDeviceLost = "DeviceLost" // "Device gpu-0 of worker a100-x7k2p is lost: XID 79: the device has fallen off the bus; ..."
	// ReasonDeviceMissing: give the workers the image and the driver, or ask for no GPU.
	ReasonDeviceMissing = "DeviceMissing" // "Worker a100-x7k2p has no GPU: The container asks for a GPU (nvidia.com/gpu), and there is none to be had: ..."
	// ReasonDeviceDegraded: check what the message names; new homes go elsewhere where they can.
	ReasonDeviceDegraded = "DeviceDegraded" // "Device gpu-0 of worker a100-x7k2p is degraded: clocks are lowered because of heat at 93 °C; check the cooling."
	// ReasonQuarantined: workers died of this model twice; change its spec to try again.
	ReasonQuarantined = "Quarantined"
	// ReasonNameConflict: another, older Model has this name, or an object that is not the pool's has one that the pool needs; choose another one.
	ReasonNameConflict = "NameConflict"
	// ReasonSuspended: set spec.suspend to false.
	ReasonSuspended = "Suspended"
	// ReasonSucceeded: nothing to do.
	ReasonSucceeded = "Succeeded"
	// ReasonInvalidTemplate: mend spec.template of the pool.
	ReasonInvalidTemplate = "InvalidTemplate"
)

// AnnotationConfirm on an InferencePool lets go what the message of its condition
// Stalled, of reason WaitingForConfirmation, names; its value is the hash that stands there.
const AnnotationConfirm = "estiba.dev/confirm"

// Labels and annotations on worker pods.
const (
	// LabelPool holds the name of a worker pod's pool.
	LabelPool = "estiba.dev/pool"
	// LabelComponent is "worker", "operator" or "gateway".
	LabelComponent = "app.kubernetes.io/component"
	// LabelName is "estiba" on gateways; the operator gives no other pod's address their token.
	LabelName = "app.kubernetes.io/name"
	// LabelModelPrefix, followed by a Model's UID, is on the worker pods that hold the model.
	LabelModelPrefix = "model.estiba.dev/"
	// AnnotationTemplateHash is the hash of the template that a worker pod was made from.
	AnnotationTemplateHash = "estiba.dev/template-hash"
	// AnnotationSuccessor is "true" on a worker pod that was made in the place of one that had served;
	// until it is ready, it counts as unavailable in an update.
	AnnotationSuccessor = "estiba.dev/successor"
)
