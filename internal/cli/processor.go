package cli

import (
	"fmt"

	"github.com/spf13/cobra"
)

// What the commands that compute on the processor have in common.

// kernelsHelp ends the long help of such a command.
const kernelsHelp = `

The environment variable ESTIBA_CPU (go, avx2, avx512 or amx) chooses the kernels of the
processor; 'estiba inspect --device' says which are taken without it, and why.`

// processorName reports whether --device names this machine's processor: "cpu", or "cpu-0", as
// reports and placements call it.
func processorName(device string) bool { return device == "cpu" || device == "cpu-0" }

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
