//go:build !race

package worker

const raced = false // the race detector is built in
