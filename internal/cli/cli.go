// Package cli has Estiba's commands, one file a subcommand. Start with Main.
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"
)

// Main runs one command line and returns the exit code: 0 for success, 1 for a
// failure, 2 for wrong usage.
func Main(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	root := rootCommand()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	fmt.Fprintln(stderr, "estiba:", err)
	if _, usage := errors.AsType[usageError](err); usage {
		fmt.Fprintln(stderr, "Run 'estiba --help', or the command with --help, for usage.")
		return 2
	}
	return 1
}

// commands lists every subcommand; a new one is a line here and a file beside this one.
var commands = []func() *cobra.Command{
	embedCommand,
	evalCommand,
	gatewayCommand,
	inspectCommand,
	operatorCommand,
	renderCommand,
	runCommand,
	serveCommand,
	synthCommand,
	tokenizeCommand,
	topCommand,
	versionCommand,
	workerCommand,
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "estiba",
		Short:         "Pack many models onto few GPUs and serve them",
		Version:       Version(),
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("unknown command %q", args[0])}
			}
			return cmd.Help()
		},
		Args: cobra.ArbitraryArgs,
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	for _, command := range commands {
		root.AddCommand(command())
	}
	wrongUsage(root)
	return root
}

// usageError marks an error of the command line, which exits with 2.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// wrongUsage marks flag and argument errors of a command and all below it.
func wrongUsage(cmd *cobra.Command) {
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return usageError{err}
			}
			return nil
		}
	}
	for _, sub := range cmd.Commands() {
		wrongUsage(sub)
	}
}

func versionCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version of this program",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]string{"version": Version(), "go": runtime.Version()})
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), Version())
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "one JSON object on standard output")
	return cmd
}

// version is set by the linker for releases.
var version string

// Version of this program: the release, or the commit it was built from.
func Version() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return s.Value
		}
	}
	return "devel"
}
