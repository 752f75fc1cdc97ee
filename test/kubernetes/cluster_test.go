package kubernetes

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/internal/fixture"
	"github.com/go-logr/logr"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"
)

// system is the namespace that the chart is installed into.
const system = "estiba"

// spareNode takes no pods but while a test has it uncordoned.
const spareNode = "node-2"

// The cluster that all tests share.
var the *cluster

// cluster is a running development cluster with Estiba in it.
type cluster struct {
	state      string // its folder
	bin        string // kubectl, helm
	env        []string
	kubeconfig string
	namespaces int    // file descriptor of its network namespace
	gateway    string // address of the gateway's Service
	models     string // folder on this machine that worker pods see as /models
	client     client.Client
	http       *http.Client // dials inside the cluster
}

func TestMain(m *testing.M) {
	state := os.Getenv("ESTIBA_TEST_KUBERNETES")
	if state == "" {
		fmt.Println("SKIPPED: end-to-end tests need a cluster; run them with make test-kubernetes")
		return
	}
	log.SetLogger(logr.Discard()) // or controller-runtime complains that there is none
	code := func() (code int) {
		c, err := start(context.Background(), state)
		defer func() {
			if code != 0 && c != nil {
				c.dump()
			}
		}()
		if err != nil {
			progress("%v", err)
			return 1
		}
		the = c
		return m.Run()
	}()
	if code == 0 {
		progress("passed")
	}
	os.Exit(code)
}

var began = time.Now()

func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%5.0fs  %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
}

// start brings a cluster up in a folder, installs the chart and waits for it.
// hack/test-kubernetes.sh takes it down, whatever becomes of this process.
func start(ctx context.Context, state string) (*cluster, error) {
	c := &cluster{state: state}
	c.kubeconfig = filepath.Join(c.state, "pki", "admin.conf")
	c.env = append(os.Environ(), "STATE="+c.state, "KUBECONFIG="+c.kubeconfig)

	progress("starting a cluster")
	out, err := c.output(c.devcluster("build"))
	if err != nil {
		return c, err
	}
	c.bin = strings.TrimSpace(out)
	l, err := net.Listen("tcp", "127.0.0.1:0") // after the build, which takes minutes: the port is to be free still
	if err != nil {
		return c, err
	}
	c.env = append(c.env, "PORT="+strconv.Itoa(l.Addr().(*net.TCPAddr).Port))
	l.Close()
	if _, err := c.output(c.devcluster("up", "2")); err != nil {
		return c, err
	}
	// Tests that need the second node let pods come to it.
	if _, err := c.kubectl("", "cordon", spareNode); err != nil {
		return c, err
	}
	if err := c.enter(); err != nil {
		return c, err
	}
	progress("packing and loading the image")
	images, err := c.output(exec.Command(filepath.Join(fixture.Root(), "hack", "image.sh")))
	if err != nil {
		return c, err
	}
	// Lines "NAME TAR"; the first is Estiba's own.
	image, tar, _ := strings.Cut(strings.SplitN(images, "\n", 2)[0], " ")
	if _, err := c.output(c.devcluster("load", filepath.Join(fixture.Root(), tar))); err != nil {
		return c, err
	}
	c.models = filepath.Join(c.state, "node-1", "lib", "models")
	if err := os.CopyFS(c.models, os.DirFS(filepath.Join(fixture.Root(), "test", "models"))); err != nil {
		return c, err
	}
	if err := os.Symlink(c.models, filepath.Join(c.state, spareNode, "lib", "models")); err != nil {
		return c, err
	}
	progress("installing the chart")
	// What the chart makes needs no more than the pod security standard "restricted" allows.
	if _, err := c.kubectl("{apiVersion: v1, kind: Namespace, metadata: {name: "+system+", labels: {pod-security.kubernetes.io/enforce: restricted}}}", "apply", "-f", "-"); err != nil {
		return c, err
	}
	repository, tag, _ := strings.Cut(image, ":")
	if _, err := c.output(c.command("helm", "install", "estiba", filepath.Join(fixture.Root(), "charts", "estiba"),
		"--namespace", system, "--wait", "--timeout", "2m",
		"--set", "image.repository="+repository, "--set", "image.tag="+tag, "--set", "operator.replicas=2", "--set", "gateway.replicas=2")); err != nil {
		return c, err
	}
	config, err := clientcmd.BuildConfigFromFlags("", c.kubeconfig)
	if err != nil {
		return c, err
	}
	scheme := clientscheme.Scheme
	utilruntime.Must(v1alpha1.AddToScheme(scheme))
	if c.client, err = client.New(config, client.Options{Scheme: scheme}); err != nil {
		return c, err
	}
	var service corev1.Service
	if err := c.client.Get(ctx, client.ObjectKey{Namespace: system, Name: "estiba-gateway"}, &service); err != nil {
		return c, err
	}
	c.gateway = "http://" + net.JoinHostPort(service.Spec.ClusterIP, "8080")
	progress("ready")
	return c, nil
}

// enter opens the cluster's network namespace.
func (c *cluster) enter() error {
	data, err := os.ReadFile(filepath.Join(c.state, "pids"))
	if err != nil {
		return err
	}
	fields := strings.Fields(string(data)) // outer, inner, nodes
	if c.namespaces, err = unix.Open("/proc/"+fields[1]+"/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		return err
	}
	transport := &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return inside(c, func() (net.Conn, error) { return new(net.Dialer).DialContext(ctx, network, address) })
		},
		DisableKeepAlives: true, // each request meets the Service anew
	}
	c.http = &http.Client{Transport: transport}
	return nil
}

// inside runs f on a thread in the cluster's network namespace. A socket stays
// in the namespace that it was made in.
func inside[T any](c *cluster, f func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this function
		if err := unix.Setns(c.namespaces, unix.CLONE_NEWNET); err != nil {
			done <- result{err: fmt.Errorf("enter the network namespace: %w", err)}
			return
		}
		value, err := f()
		done <- result{value, err}
	}()
	r := <-done
	return r.value, r.err
}

// nodeAddress is where pods reach this test's own listeners.
const nodeAddress = "10.250.0.1"

// listen opens a port inside the cluster.
func (c *cluster) listen(t *testing.T, port int) net.Listener {
	t.Helper()
	l, err := inside(c, func() (net.Listener, error) {
		return net.Listen("tcp", net.JoinHostPort(nodeAddress, strconv.Itoa(port)))
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func (c *cluster) devcluster(args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(fixture.Root(), "hack", "devcluster", "devcluster"), args...)
	cmd.Env = c.env
	return cmd
}

// command is one of the cluster's own programs: kubectl, helm.
func (c *cluster) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(c.bin, name), args...)
	cmd.Env = c.env
	return cmd
}

// output runs cmd and returns its standard output; standard error is shown.
func (c *cluster) output(cmd *exec.Cmd) (string, error) {
	var stdout bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, stdout.String())
	}
	return stdout.String(), nil
}

// kubectl runs kubectl with input, and returns all it prints.
func (c *cluster) kubectl(input string, args ...string) (string, error) {
	cmd := c.command("kubectl", args...)
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("kubectl %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return string(out), err
}

// signal sends a signal to a component of the control plane.
func (c *cluster) signal(t *testing.T, name, component string) {
	t.Helper()
	if out, err := c.devcluster("signal", name, component).CombinedOutput(); err != nil {
		t.Fatalf("signal %s to %s: %v\n%s", name, component, err, out)
	}
}

// dump prints what helps to find out why a test failed.
func (c *cluster) dump() {
	for _, args := range [][]string{
		{"get", "pods,model,ipool", "--all-namespaces", "-o", "wide"},
		{"get", "model", "--all-namespaces", "-o", "yaml"},
		{"get", "events", "--all-namespaces", "--sort-by=.lastTimestamp"},
		{"describe", "pods", "--namespace", system},
		{"logs", "--namespace", system, "--selector", "app.kubernetes.io/component=operator", "--tail=200", "--prefix"},
		{"logs", "--namespace", system, "--selector", "app.kubernetes.io/component=gateway", "--tail=100", "--prefix"},
	} {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		cmd := exec.CommandContext(ctx, filepath.Join(c.bin, "kubectl"), args...)
		cmd.Env = c.env
		fmt.Fprintf(os.Stderr, "--- kubectl %s\n", strings.Join(args, " "))
		cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
		_ = cmd.Run()
		cancel()
	}
}

// processes are the ids, on this machine, of what runs in a container.
func (c *cluster) processes(t *testing.T, container string) []int {
	t.Helper()
	_, id, _ := strings.Cut(container, "://")
	files, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil || id == "" {
		t.Fatalf("processes of container %q: %v", container, err)
	}
	var pids []int
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil || !bytes.Contains(data, []byte(id)) {
			continue // it ended meanwhile, or is another's
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		pids = append(pids, pid)
	}
	return pids
}

// kill sends a signal to the processes of a pod's first container.
func (c *cluster) kill(t *testing.T, pod *corev1.Pod, sig syscall.Signal) {
	t.Helper()
	if len(pod.Status.ContainerStatuses) == 0 {
		t.Fatalf("pod %s has no container", pod.Name)
	}
	pids := c.processes(t, pod.Status.ContainerStatuses[0].ContainerID)
	if len(pids) == 0 {
		t.Fatalf("pod %s has no process", pod.Name)
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, sig); err != nil {
			t.Fatalf("signal %v to pod %s: %v", sig, pod.Name, err)
		}
	}
}

// request sends body to the gateway and returns status and answer.
func (c *cluster) request(ctx context.Context, method, path string, body []byte) (int, []byte, error) {
	r, err := http.NewRequestWithContext(ctx, method, c.gateway+path, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	r.Header.Set("Content-Type", "application/json")
	response, err := c.http.Do(r)
	if err != nil {
		return 0, nil, err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	return response.StatusCode, answer, err
}

// complete asks for a completion at temperature 0.
func (c *cluster) complete(ctx context.Context, model, prompt string, tokens int) (string, error) {
	body, _ := json.Marshal(map[string]any{"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0})
	status, answer, err := c.request(ctx, "POST", "/v1/completions", body)
	if err != nil {
		return "", err
	}
	if status != 200 {
		return "", fmt.Errorf("status %d: %s", status, answer)
	}
	var completion struct {
		Choices []struct {
			Text string `json:"text"`
		} `json:"choices"`
	}
	if err := json.Unmarshal(answer, &completion); err != nil || len(completion.Choices) != 1 {
		return "", fmt.Errorf("not a completion: %s", answer)
	}
	return completion.Choices[0].Text, nil
}
