package cpu

// pause waits n times some tens of cycles, in which the core's other thread, or nobody, works.
//
//go:noescape
func pause(n int)
