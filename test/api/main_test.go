// Package apitest tries the custom resources and the operator against a real
// API server: the schema's rules, the samples, and the operator as a process
// with no more permissions than config/rbac grants. There is no kubelet: the
// tests play its part and the workers'.
//
// It needs KUBEBUILDER_ASSETS, a folder with etcd and kube-apiserver.
package apitest

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	"sigs.k8s.io/yaml"

	"github.com/estiba/estiba/controllers"
	"github.com/estiba/estiba/internal/fixture"
)

const (
	system       = "estiba-system"
	operatorUser = "system:serviceaccount:" + system + ":estiba-operator"
	guestUser    = "system:serviceaccount:" + system + ":estiba-guest"
	tenant       = "tenant"
	installation = "0123456789abcdef0123456789abcdef"
)

// cluster is the API server that all tests share.
var cluster struct {
	env    *envtest.Environment
	config *rest.Config
	client client.Client
	folder string // with the users' kubeconfigs
}

func TestMain(m *testing.M) {
	if options := os.Getenv("ESTIBA_TEST_RUN_OPERATOR"); options != "" {
		os.Exit(operate(options))
	}
	if os.Getenv("KUBEBUILDER_ASSETS") == "" {
		if os.Getenv("CI") == "true" && os.Getenv("ESTIBA_TEST_API") == "1" {
			fmt.Fprintln(os.Stderr, "FAILED: KUBEBUILDER_ASSETS is not set: it names a folder with etcd and kube-apiserver")
			os.Exit(1)
		}
		fmt.Fprintln(os.Stderr, "SKIPPED: all tests against a real API server, since KUBEBUILDER_ASSETS (a folder with etcd and kube-apiserver) is not set")
		os.Exit(0)
	}
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "FAILED:", err)
		code = 1
	}
	os.Exit(code)
}

// operate is the operator's process.
func operate(text string) int {
	var o controllers.RunOptions
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	o.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	if err == nil {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		err = controllers.Run(ctx, config, o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "operator:", err)
		return 1
	}
	return 0
}

func run(m *testing.M) (code int, err error) {
	cluster.env = &envtest.Environment{
		CRDDirectoryPaths:     []string{filepath.Join(fixture.Root(), "config", "crd")},
		ErrorIfCRDPathMissing: true,
	}
	if cluster.config, err = cluster.env.Start(); err != nil {
		return 1, fmt.Errorf("start an API server: %w", err)
	}
	defer func() {
		if stopped := cluster.env.Stop(); stopped != nil && err == nil {
			err = stopped
		}
		_ = os.RemoveAll(cluster.folder)
	}()
	scheme, err := controllers.Scheme()
	if err != nil {
		return 1, err
	}
	if cluster.client, err = client.New(cluster.config, client.Options{Scheme: scheme}); err != nil {
		return 1, err
	}
	if err := permissions(); err != nil {
		return 1, fmt.Errorf("grant what config/rbac says: %w", err)
	}
	return m.Run(), nil
}

// permissions grants the operator's user what config/rbac says, and no more.
func permissions() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	create := func(objects ...client.Object) error {
		for _, o := range objects {
			if err := cluster.client.Create(ctx, o); err != nil {
				return err
			}
		}
		return nil
	}
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
	own.Namespace = system
	who := []rbacv1.Subject{{Kind: "User", APIGroup: "rbac.authorization.k8s.io", Name: operatorUser}}
	role := func(kind, name string) rbacv1.RoleRef {
		return rbacv1.RoleRef{APIGroup: "rbac.authorization.k8s.io", Kind: kind, Name: name}
	}
	err := create(
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: system}},
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: controllers.KeySecret}, Data: map[string][]byte{controllers.KeyEntry: []byte(installation)}},
		&everywhere, &clusterWide, &own,
		&rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "estiba-operator"}, Subjects: who, RoleRef: role("ClusterRole", everywhere.Name)},
		&rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "estiba-operator-cluster"}, Subjects: who, RoleRef: role("ClusterRole", clusterWide.Name)},
		&rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: "estiba-operator"}, Subjects: who, RoleRef: role("Role", own.Name)},
	)
	if err != nil {
		return err
	}
	// The guest's permissions end with one namespace.
	guest := []rbacv1.Subject{{Kind: "User", APIGroup: "rbac.authorization.k8s.io", Name: guestUser}}
	err = create(
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: tenant, Labels: map[string]string{"pod-security.kubernetes.io/enforce": "restricted"}}},
		&rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Namespace: tenant, Name: "estiba-operator"}, Subjects: guest, RoleRef: role("ClusterRole", everywhere.Name)},
		&rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: "estiba-guest"}, Subjects: guest, RoleRef: role("Role", own.Name)},
	)
	if err != nil {
		return err
	}
	if cluster.folder, err = os.MkdirTemp("", "estiba-api-"); err != nil {
		return err
	}
	for _, user := range []string{operatorUser, guestUser} {
		account, err := cluster.env.AddUser(envtest.User{Name: user}, cluster.config)
		if err != nil {
			return err
		}
		text, err := account.KubeConfig()
		if err != nil {
			return err
		}
		if err := os.WriteFile(kubeconfig(user), text, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// kubeconfig is the file of a user.
func kubeconfig(user string) string {
	return filepath.Join(cluster.folder, strings.ReplaceAll(user, ":", "-"))
}
