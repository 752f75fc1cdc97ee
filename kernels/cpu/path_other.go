//go:build !linux || !amd64

package cpu

func requestTiles() bool { return false }
