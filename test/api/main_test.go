// Package apitest tries the custom resources and the operator against a real
// API server: the schema's rules, the samples, and the operator as a process
// with no more permissions than config/rbac grants. There is no kubelet: the
// tests play its part, and workers are simulated.
//
// It needs KUBEBUILDER_ASSETS, a folder with etcd and kube-apiserver.
package apitest

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/estiba/estiba/test/apiserver"
)

const (
	system = apiserver.System
	guest  = "system:serviceaccount:" + system + ":estiba-guest"
	tenant = "tenant"
)

// cluster is the API server that all tests share.
var cluster *apiserver.Server

func TestMain(m *testing.M) { apiserver.Main(m, &cluster, invite) }

// invite adds a guest, whose permissions end with one namespace.
func invite(s *apiserver.Server) error {
	who := []rbacv1.Subject{apiserver.User(guest)}
	err := s.Create(
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: tenant, Labels: map[string]string{"pod-security.kubernetes.io/enforce": "restricted"}}},
		&rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Namespace: tenant, Name: "estiba-operator"}, Subjects: who, RoleRef: apiserver.Role("ClusterRole", "estiba-operator")},
		&rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: "estiba-guest"}, Subjects: who, RoleRef: apiserver.Role("Role", "estiba-operator")},
	)
	if err != nil {
		return err
	}
	return s.AddUser(guest)
}
