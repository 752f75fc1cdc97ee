package cli

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"github.com/estiba/estiba/internal/fixture"
)

func TestUsage(t *testing.T) {
	for args, c := range map[string]struct {
		code int
		want string // in standard error
	}{
		"bogus":                        {2, `unknown command "bogus": give one of bench, embed, eval`},
		"rum":                          {2, `unknown command "rum": did you mean run?`},
		"help foo":                     {2, `unknown command "foo": give one of bench, embed, eval`},
		"help explain modle":           {2, `unknown command "modle": did you mean model?`},
		"explain modle m":              {2, `unknown command "modle": did you mean model?`},
		"tpo\x1b[2J\u202e":             {2, `unknown command "tpo\x1b[2J\u202e": give one of`},
		"top --serv\x1be":              {2, `unknown flag: --serv\x1be`},
		"help nothing":                 {2, `unknown command "nothing": give one of`},
		"help run now":                 {2, `unknown command "now"`},
		"help":                         {0, ""},
		"help run":                     {0, ""},
		"run":                          {2, "MODEL is missing: give a model's folder or a .gguf file"},
		"run \x00 --ids 1":             {2, "MODEL is empty: give a model's folder or a .gguf file"},
		"run a b --ids 1":              {2, `"b" is too much: estiba run takes one MODEL`},
		"run a --ids 1 --max-tokens x": {2, `--max-tokens "x": give a whole number`},
		"run a --ids 1 --max-tokens 99999999999999999999": {2, `give a smaller number`},
		"run a --ids 1 --temperature hot":                 {2, `--temperature "hot": give a number`},
		"run a --json=maybe":                              {2, `--json "maybe": give true or false`},
		"serve a":                                         {2, `"a" is too much: estiba serve takes flags only`},
		"serve -f a --drain soon":                         {2, `--drain "soon": give a time such as 30s or 5m`},
		"serve -f a --emulate g --device cuda":            {2, "--device is cuda, and for the GPUs of --emulate the processor computes: leave out one of them"},
		"serve -f a --drain -5s":                          {2, "--drain is -5s: give 0s or more"},
		"gateway --key-file a --drain -5s":                {2, "--drain is -5s: give 0s or more"},
		"worker --pool a/b --token-file a --drain -5s":    {2, "--drain is -5s: give 0s or more"},
	} {
		words := strings.Fields(args)
		for i := range words {
			words[i] = strings.Trim(words[i], "\x00")
		}
		var stdout, stderr bytes.Buffer
		code := Main(words, nil, &stdout, &stderr)
		lines := strings.Count(stderr.String(), "\n")
		if code != c.code || !strings.Contains(stderr.String(), c.want) || lines != code {
			t.Errorf("estiba %s: exit %d, want %d with %q\n%s", args, code, c.code, c.want, stderr.String())
		}
	}
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("no space left") }

func TestOutputFull(t *testing.T) {
	for _, args := range []string{"--help", "help", "help run", "run --help", "version", "version --json", "--version"} {
		var stderr bytes.Buffer
		if code := Main(strings.Fields(args), nil, full{}, &stderr); code != 1 || !strings.Contains(stderr.String(), "no space left") {
			t.Errorf("estiba %s: exit %d, %s", args, code, stderr.String())
		}
	}
}

// TestContractCommands: the contract page lists the commands that there are.
func TestContractCommands(t *testing.T) {
	page, err := os.ReadFile(filepath.Join(fixture.Root(), "docs", "contract.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(page), "\n## Commands\n")
	var listed, are []string
	for _, list := range regexp.MustCompile("`estiba ([a-z]+(?: \\| [a-z]+)+)`").FindAllStringSubmatch(after, -1) {
		listed = append(listed, strings.Split(list[1], " | ")...)
	}
	for _, c := range rootCommand().Commands() {
		if c.Name() != "help" {
			are = append(are, c.Name())
		}
	}
	slices.Sort(listed)
	slices.Sort(are)
	if diff := cmp.Diff(are, listed); diff != "" {
		t.Error(diff)
	}
}

// TestToolsTakeJSON: every tool has --json.
func TestToolsTakeJSON(t *testing.T) {
	long := []string{"operator", "gateway", "worker", "serve", "help"}
	tools := slices.DeleteFunc(rootCommand().Commands(), func(c *cobra.Command) bool { return slices.Contains(long, c.Name()) })
	for len(tools) > 0 {
		c := tools[0]
		tools = append(tools[1:], c.Commands()...)
		if !c.HasSubCommands() && c.Flag("json") == nil {
			t.Errorf("%s takes no --json", c.CommandPath())
		}
	}
}
