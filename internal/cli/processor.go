package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/estiba/estiba/runtime/backend/named"
)

// What the commands that compute have in common.

// kernelsHelp ends the long help of such a command.
const kernelsHelp = `

The environment variable ESTIBA_CPU (go, avx2, avx512 or amx) chooses the kernels of the
processor; 'estiba inspect --device' says which are taken without it, and why.`

// deviceFlag adds --device of a command that computes on one.
func deviceFlag(cmd *cobra.Command, device *string) {
	cmd.Flags().StringVar(device, "device", named.Processor, named.Help)
}

// checkDevice is about the value of --device, where arithmetic may have to be exact.
func checkDevice(device string, exact bool) error {
	if err := named.Check(device); err != nil {
		return usageError{err}
	}
	if exact && !named.OnProcessor(device) {
		return usageError{fmt.Errorf("--device %s has no exact arithmetic: leave --exact and --logits out, or take --device cpu", device)}
	}
	return nil
}

// mostThreads keeps a slip of the finger from making as many goroutines as it says.
const mostThreads = 4096

// threadsFlag adds --threads.
func threadsFlag(cmd *cobra.Command, threads *int) {
	cmd.Flags().IntVar(threads, "threads", 0, "threads that compute; 0 for as many as there are processors, or as the CPU quota allows")
}

// checkThreads is about the value of --threads.
func checkThreads(threads int) error {
	if threads < 0 || threads > mostThreads {
		return usageError{fmt.Errorf("--threads is %d: give a number from 0 to %d", threads, mostThreads)}
	}
	return nil
}
