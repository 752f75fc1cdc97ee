// Command devtool does the three chores of the development cluster that have
// no small standard tool: keys and kubeconfigs, image tarballs, and a port on
// this machine's loopback that leads into the cluster's network namespace.
package main

import (
	"fmt"
	"os"
)

func main() {
	commands := map[string]func([]string) error{"pki": pki, "image": image, "forward": forward}
	if len(os.Args) < 2 || commands[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: devtool pki DIR SERVER-URL NODE=IP... | image NAME OUT.tar SOURCE=PATH... | forward LISTEN PID TARGET")
		os.Exit(2)
	}
	if err := commands[os.Args[1]](os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "devtool:", err)
		os.Exit(1)
	}
}
