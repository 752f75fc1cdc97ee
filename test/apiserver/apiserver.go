// Package apiserver starts a real API server (etcd and kube-apiserver, no
// kubelet) with Estiba's custom resources, and gives the operator no more
// permissions there than config/rbac says. A test's main starts with Main.
//
// It needs KUBEBUILDER_ASSETS, a folder with etcd and kube-apiserver.
package apiserver

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/yaml"

	"github.com/estiba/estiba/controllers"
	"github.com/estiba/estiba/internal/fixture"
	"github.com/estiba/estiba/internal/history"
)

// What every server has.
const (
	System   = "estiba-system" // namespace
	Operator = "system:serviceaccount:" + System + ":estiba-operator"
	Key      = "0123456789abcdef0123456789abcdef" // of the installation
)

// Server is an API server.
type Server struct {
	Config *rest.Config // of somebody who may do everything
	Client client.WithWatch

	env    *envtest.Environment
	folder string // with the users' kubeconfigs
}

// operate names the environment variable with which a test's program runs as an operator.
const operate = "ESTIBA_TEST_RUN_OPERATOR"

// Main runs a package's tests with a server, which init may prepare further, and
// exits. Without the programs for one it says so and skips them all.
func Main(m *testing.M, server **Server, init func(*Server) error) {
	if options := os.Getenv(operate); options != "" {
		os.Exit(runOperator(options))
	}
	if os.Getenv("KUBEBUILDER_ASSETS") == "" {
		if os.Getenv("CI") == "true" && os.Getenv("ESTIBA_TEST_API") == "1" {
			fmt.Fprintln(os.Stderr, "FAILED: KUBEBUILDER_ASSETS is not set: it names a folder with etcd and kube-apiserver")
			os.Exit(1)
		}
		fmt.Fprintln(os.Stderr, "SKIPPED: all tests against a real API server, since KUBEBUILDER_ASSETS (a folder with etcd and kube-apiserver) is not set")
		os.Exit(0)
	}
	code, err := run(m, server, init)
	if err != nil {
		fmt.Fprintln(os.Stderr, "FAILED:", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M, server **Server, init func(*Server) error) (code int, err error) {
	ctrllog.SetLogger(logr.Discard())
	s := &Server{env: &envtest.Environment{
		CRDDirectoryPaths:     []string{filepath.Join(fixture.Root(), "config", "crd")},
		ErrorIfCRDPathMissing: true,
	}}
	if s.Config, err = s.env.Start(); err != nil {
		return 1, fmt.Errorf("start an API server: %w", err)
	}
	defer func() {
		if stopped := s.env.Stop(); stopped != nil && err == nil {
			err = stopped
		}
		_ = os.RemoveAll(s.folder)
	}()
	scheme, err := controllers.Scheme()
	if err != nil {
		return 1, err
	}
	if s.Client, err = client.NewWithWatch(s.Config, client.Options{Scheme: scheme}); err != nil {
		return 1, err
	}
	if s.folder, err = os.MkdirTemp("", "estiba-api-"); err != nil {
		return 1, err
	}
	if err := s.permit(); err != nil {
		return 1, fmt.Errorf("grant what config/rbac says: %w", err)
	}
	if init != nil {
		if err := init(s); err != nil {
			return 1, err
		}
	}
	*server = s
	return m.Run(), nil
}

// permit grants the operator's user what config/rbac says, and no more.
func (s *Server) permit() error {
	var everywhere, clusterWide rbacv1.ClusterRole
	var own rbacv1.Role
	for file, role := range map[string]any{"operator.yaml": &everywhere, "operator-cluster.yaml": &clusterWide, "operator-own.yaml": &own} {
		text, err := os.ReadFile(filepath.Join(fixture.Root(), "config", "rbac", file))
		if err != nil {
			return err
		}
		if err := yaml.UnmarshalStrict(text, role); err != nil {
			return err
		}
	}
	own.Namespace = System
	who := []rbacv1.Subject{User(Operator)}
	err := s.Create(
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: System}},
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: System, Name: controllers.KeySecret}, Data: map[string][]byte{controllers.KeyEntry: []byte(Key)}},
		&everywhere, &clusterWide, &own,
		&rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "estiba-operator"}, Subjects: who, RoleRef: Role("ClusterRole", everywhere.Name)},
		&rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "estiba-operator-cluster"}, Subjects: who, RoleRef: Role("ClusterRole", clusterWide.Name)},
		&rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Namespace: System, Name: "estiba-operator"}, Subjects: who, RoleRef: Role("Role", own.Name)},
	)
	if err != nil {
		return err
	}
	return s.AddUser(Operator)
}

// User is the subject of a role for a user.
func User(name string) rbacv1.Subject {
	return rbacv1.Subject{Kind: "User", APIGroup: "rbac.authorization.k8s.io", Name: name}
}

// Role refers to a role.
func Role(kind, name string) rbacv1.RoleRef {
	return rbacv1.RoleRef{APIGroup: "rbac.authorization.k8s.io", Kind: kind, Name: name}
}

// Create creates objects.
func (s *Server) Create(objects ...client.Object) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for _, o := range objects {
		if err := s.Client.Create(ctx, o); err != nil {
			return err
		}
	}
	return nil
}

// AddUser lets a user in, under whose name StartOperator may run.
func (s *Server) AddUser(name string) error {
	account, err := s.env.AddUser(envtest.User{Name: name}, s.Config)
	if err != nil {
		return err
	}
	text, err := account.KubeConfig()
	if err != nil {
		return err
	}
	return os.WriteFile(s.kubeconfig(name), text, 0o600)
}

// kubeconfig is the file of a user.
func (s *Server) kubeconfig(user string) string {
	return filepath.Join(s.folder, strings.ReplaceAll(user, ":", "-"))
}

// Process is an operator's process.
type Process struct {
	Cmd *exec.Cmd
	mu  sync.Mutex
	log bytes.Buffer
}

func (o *Process) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.log.Write(p)
}

// Log is what the process has written.
func (o *Process) Log() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.log.String()
}

// settings of an operator that its process is told.
type settings struct {
	Namespaces  []string
	Listen      string
	LeaderElect bool
	Policy      controllers.Policy
	Profiles    string // folder for profiles
}

// StartOperator runs this test's program as an operator under a user's name. It
// ends with the test, which fails if the operator asked for more than it may.
// Of its options those count that a person would choose.
func (s *Server) StartOperator(t *testing.T, user string, o controllers.RunOptions) *Process {
	t.Helper()
	return s.StartProfiled(t, user, o, "")
}

// StartProfiled is StartOperator; the process writes its profiles to a folder, if one is given, when the test ends.
func (s *Server) StartProfiled(t *testing.T, user string, o controllers.RunOptions, folder string) *Process {
	t.Helper()
	options, err := json.Marshal(settings{o.Namespaces, cmp.Or(o.Listen, "127.0.0.1:0"), o.LeaderElect, o.Policy, folder})
	if err != nil {
		t.Fatal(err)
	}
	p := &Process{Cmd: exec.Command(os.Args[0])}
	p.Cmd.Env = append(os.Environ(), operate+"="+string(options), "KUBECONFIG="+s.kubeconfig(user))
	p.Cmd.Stderr, p.Cmd.Stdout = p, p
	if err := p.Cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if folder != "" {
			_ = p.Cmd.Process.Signal(syscall.SIGTERM)
			_ = p.Cmd.Wait()
		}
		_ = p.Cmd.Process.Signal(syscall.SIGCONT)
		_ = p.Cmd.Process.Kill()
		_ = p.Cmd.Wait()
		if strings.Contains(p.Log(), "forbidden") {
			t.Error("the operator asks for more than config/rbac grants")
		}
		if t.Failed() {
			t.Logf("operator:\n%s", p.Log())
		}
	})
	return p
}

// runOperator is the operator's process.
func runOperator(text string) int {
	var told settings
	if err := json.Unmarshal([]byte(text), &told); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	o := controllers.RunOptions{
		Namespace: System, Namespaces: told.Namespaces, WorkerImage: "estiba:test", Listen: told.Listen, LeaderElect: told.LeaderElect,
		Policy: told.Policy, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	}
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	if err == nil {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		if told.Profiles != "" {
			defer keepProfiles(told.Profiles)()
		}
		recorder := history.NewRecorder(history.RecorderOptions{Log: o.Log}) // as the command does
		go recorder.Run(ctx)
		o.Decided = recorder.Decided
		err = controllers.Run(ctx, config, o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "operator:", err)
		return 1
	}
	return 0
}

// keepProfiles writes cpu.pprof and heap.pprof to a folder when the function that it gives is called.
func keepProfiles(folder string) func() {
	create := func(name string) *os.File {
		f, err := os.Create(filepath.Join(folder, name))
		if err != nil {
			panic(err)
		}
		return f
	}
	cpu := create("cpu.pprof")
	if err := pprof.StartCPUProfile(cpu); err != nil {
		panic(err)
	}
	return func() {
		pprof.StopCPUProfile()
		cpu.Close()
		heap := create("heap.pprof")
		defer heap.Close()
		runtime.GC()
		_ = pprof.WriteHeapProfile(heap)
	}
}
