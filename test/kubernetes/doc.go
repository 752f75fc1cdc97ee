// Package kubernetes has the end-to-end tests: Estiba's chart in a real
// cluster, used as people use it, and broken in the ways that must not matter.
// `make test-kubernetes` runs them; without it they are skipped. Start with
// cluster_test.go.
package kubernetes
