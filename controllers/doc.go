// Package controllers is Estiba's one placement loop: observe → decide → apply.
//
// Start with Decide in decide.go: a pure function from Seen (what there is) to
// Plan (what to do). It has no client, clock or log, and does not know whether
// a worker is a pod or runs in the same process. Reconciler feeds it from a
// Kubernetes API server and carries its plans out.
//
// # Deleting
//
// Nothing of ours has a finalizer, so that nothing hangs when the operator is
// away. A Model that is gone is no longer named in assignments: its workers end
// the running requests and let it go. A pool owns its pods, Secret and budget:
// the garbage collector deletes them, and a worker drains by itself on SIGTERM
// (its pod's grace period is the pool's drain time and 30 s).
//
// # Without Kubernetes
//
// A program that has manifests and workers of its own runs the same decisions:
//
//	model := controllers.Defaulted(m)      // what the API server's schema fills in
//	err := controllers.Validate(model)     // what the API server's rules refuse
//
//	var memory controllers.Memory
//	for range changes {                    // a manifest, a worker's or a gateway's report; at the latest after plan.Again
//		plan := controllers.Decide(controllers.Seen{
//			Now: time.Now(), Settled: true, Epoch: 1,
//			Models: models, Pools: pools,     // Status as Decide gave it last
//			Workers: workers,                 // Report: what the worker last reported
//			Sent: fleet.Sent(), Inspections: inspections, Gateways: gateways,
//			Memory: memory,
//		})
//		memory = plan.Memory
//	}
//
// and carries out of the plan what it can: Assignments go to the workers,
// Inspect is asked for and comes back in Seen.Inspections, the statuses are
// kept. Create and Delete may be ignored where the number of workers is fixed:
// give the pool workers {min: n, max: n}. Fields that only pods have (Hash,
// Labels, Disruption, Waiting) stay empty.
package controllers
