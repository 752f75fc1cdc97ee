// Package cli has Estiba's commands, one file a subcommand. Start with Main.
package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/estiba/estiba/internal/terminal"
	"github.com/estiba/estiba/runtime/backend"
)

// exitDevice is the exit code of a process that ends because it can make no more use of a device, while
// another one can: one starts anew (docs/gpus.md).
const exitDevice = 70

// Main runs one command line and returns the exit code: 0 for success, 1 for a
// failure, 2 for wrong usage, exitDevice.
func Main(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	root := rootCommand()
	root.SetArgs(args)
	root.SetIn(stdin)
	out := &watched{Writer: stdout}
	root.SetOut(out)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		err = out.err // which nobody returns of a help text
	}
	if err == nil {
		return 0
	}
	device, sick := errors.AsType[*backend.DeviceError](err)
	switch {
	case sick && device.Lost:
		err = fmt.Errorf("%w; look for XIDs in the kernel's log, and reset the device or replace it", device)
	case sick:
		err = fmt.Errorf("%w; start it anew, or have a supervisor do so: another process can use the device", device)
	}
	fmt.Fprintln(stderr, "estiba:", terminal.Text(err.Error()))
	if _, usage := errors.AsType[usageError](err); usage {
		fmt.Fprintln(stderr, "Run 'estiba --help', or the command with --help, for usage.")
		return 2
	}
	if sick && !device.Lost {
		return exitDevice
	}
	return 1
}

// watched remembers a write that failed.
type watched struct {
	io.Writer
	err error
}

func (w *watched) Write(b []byte) (int, error) {
	n, err := w.Writer.Write(b)
	w.err = cmp.Or(w.err, err)
	return n, err
}

// commands lists every subcommand; a new one is a line here and a file beside this one.
var commands = []func() *cobra.Command{
	benchCommand,
	embedCommand,
	evalCommand,
	explainCommand,
	gatewayCommand,
	inspectCommand,
	operatorCommand,
	renderCommand,
	runCommand,
	serveCommand,
	simulateCommand,
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
				return unknown(cmd, args[0])
			}
			return cmd.Help()
		},
		Args: cobra.ArbitraryArgs,
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetHelpCommand(helpCommand())
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
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{flagError(err)} })
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

// flagError says what a flag takes, instead of how its value is parsed.
func flagError(err error) error {
	wrong, ok := errors.AsType[*pflag.InvalidValueError](err)
	if !ok {
		return err
	}
	want := map[string]string{
		"int": "a whole number", "int64": "a whole number", "uint64": "a whole number of at least 0", "float64": "a number", "bool": "true or false",
		"duration": "a time such as 30s or 5m",
	}[wrong.GetFlag().Value.Type()]
	switch {
	case want == "":
		return err
	case errors.Is(err, strconv.ErrRange):
		want = "a smaller number"
	}
	return fmt.Errorf("--%s %q: give %s", wrong.GetFlag().Name, wrong.GetValue(), want)
}

// oneModel is for commands that take a model.
var oneModel = one("MODEL", "a model's folder or a .gguf file")

// one is for commands that take one argument.
func one(name, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) == 0:
			return fmt.Errorf("%s is missing: give %s", name, what)
		case len(args) > 1:
			return fmt.Errorf("%q is too much: %s takes one %s", args[1], cmd.CommandPath(), name)
		case args[0] == "":
			return fmt.Errorf("%s is empty: give %s", name, what)
		}
		return nil
	}
}

// none is for commands that take flags only.
func none(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("%q is too much: %s takes flags only", args[0], cmd.CommandPath())
	}
	return nil
}

// unknown says which commands there are below one.
func unknown(above *cobra.Command, name string) error {
	above.SuggestionsMinimumDistance = min(2, max(1, (len(name)+1)/3)) // of "foo" everything of three letters is two away
	if like := above.SuggestionsFor(name); len(like) > 0 {
		return usageError{fmt.Errorf("unknown command %q: did you mean %s?", name, strings.Join(like, " or "))}
	}
	var names []string
	for _, c := range above.Commands() {
		if c.IsAvailableCommand() {
			names = append(names, c.Name())
		}
	}
	return usageError{fmt.Errorf("unknown command %q: give one of %s", name, strings.Join(names, ", "))}
}

func helpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Show how to use a command",
		RunE: func(cmd *cobra.Command, args []string) error {
			about, rest, err := cmd.Root().Find(args)
			if err != nil {
				return usageError{err}
			}
			if len(rest) > 0 {
				if !about.HasSubCommands() {
					about = cmd.Root()
				}
				return unknown(about, rest[0])
			}
			about.InitDefaultHelpFlag()
			return about.Help()
		},
	}
}

func versionCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version of this program",
		Args:  none,
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
