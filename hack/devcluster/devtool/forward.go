package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// forward LISTEN PID TARGET accepts connections at LISTEN in this network
// namespace and dials TARGET from inside the network namespace of process PID.
// A socket stays in the namespace it was made in, so nothing else is needed:
// no veth, no route, no packet filter on this machine.
func forward(args []string) error {
	if len(args) != 3 {
		return fmt.Errorf("forward: want LISTEN PID TARGET")
	}
	l, err := net.Listen("tcp", args[0])
	if err != nil {
		return err
	}
	ns, err := os.Open("/proc/" + args[1] + "/ns/net")
	if err != nil {
		return err
	}
	// All dialling is done by one thread that lives in the other namespace.
	requests := make(chan chan net.Conn)
	entered := make(chan error)
	go func() {
		runtime.LockOSThread()
		entered <- unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		for reply := range requests {
			conn, err := net.DialTimeout("tcp", args[2], 5*time.Second)
			if err != nil {
				fmt.Fprintln(os.Stderr, "forward:", err)
			}
			reply <- conn
		}
	}()
	if err := <-entered; err != nil {
		return fmt.Errorf("forward: enter the network namespace of process %s: %w", args[1], err)
	}
	for {
		in, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer in.Close()
			reply := make(chan net.Conn)
			requests <- reply
			if out := <-reply; out != nil {
				defer out.Close()
				join(in.(*net.TCPConn), out.(*net.TCPConn))
			}
		}()
	}
}

// join copies both ways until both sides have ended. A side that fails ends
// the other at once, so that a client that goes away is noticed beyond.
func join(a, b *net.TCPConn) {
	var wg sync.WaitGroup
	pipe := func(dst, src *net.TCPConn) {
		if _, err := io.Copy(dst, src); err != nil {
			a.Close()
			b.Close()
			return
		}
		dst.CloseWrite()
	}
	wg.Go(func() { pipe(a, b) })
	wg.Go(func() { pipe(b, a) })
	wg.Wait()
}
