// Command estiba packs many models onto few GPUs and serves them.
package main

import (
	"os"

	"github.com/estiba/estiba/internal/cli"
)

func main() { os.Exit(cli.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }
