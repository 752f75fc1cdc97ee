package apitest

import (
	"io"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/estiba/estiba/internal/explain"
)

// TestExplainChecks: before a manifest is explained, the API server says in a
// dry run whether it would take it. Nothing is applied.
func TestExplainChecks(t *testing.T) {
	t.Setenv("KUBECONFIG", kubeconfig(t))
	const good = "{source: {uri: 'file:///models/x'}}"
	for name, c := range map[string]struct{ manifest, says string }{
		"taken":                     {model("proposed", good), "no operator runs in namespace"}, // it is asked next
		"a pool beside it":          {pool("proposed", "{workers: {max: 2}}") + "---\n" + model("proposed", good), "no operator runs in namespace"},
		"no such namespace":         {strings.Replace(model("proposed", good), "namespace: default", "namespace: nowhere", 1), `the API server would not take it: namespaces "nowhere" not found`},
		"a rule, before any server": {model("proposed", "{source: {uri: 'ftp://x/y'}}"), "spec.source.uri must start with file://, http:// or https://"},
	} {
		t.Run(name, func(t *testing.T) {
			err := explain.Manifest(t.Context(), io.Discard, strings.NewReader(c.manifest), "-", explain.Options{})
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want ...%s...", err, c.says)
			}
		})
	}
	if err := cluster.Client.Get(t.Context(), client.ObjectKey{Namespace: "default", Name: "proposed"}, object(t, model("proposed", good))); err == nil {
		t.Error("the Model was applied")
	}
}

// kubeconfig is a file with which whoever asks may do everything.
func kubeconfig(t *testing.T) string {
	c := clientcmdapi.NewConfig()
	c.Clusters["test"] = &clientcmdapi.Cluster{Server: cluster.Config.Host, CertificateAuthorityData: cluster.Config.CAData}
	c.AuthInfos["test"] = &clientcmdapi.AuthInfo{ClientCertificateData: cluster.Config.CertData, ClientKeyData: cluster.Config.KeyData, Token: cluster.Config.BearerToken}
	c.Contexts["test"] = &clientcmdapi.Context{Cluster: "test", AuthInfo: "test"}
	c.CurrentContext = "test"
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*c, path); err != nil {
		t.Fatal(err)
	}
	return path
}
