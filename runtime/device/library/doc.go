// Package library tries libraries of a driver before they are loaded: a damaged one ends the process that loads it,
// and a worker shall then serve on the processor. It needs the build tag cuda and cgo; start at Try.
package library
