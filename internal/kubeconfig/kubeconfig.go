// Package kubeconfig finds the cluster of a user. Start with Get.
package kubeconfig

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client/config"
)

// largest kubeconfig that is read, in bytes. A long one, of a hundred clusters, has 1 MiB.
const largest = 16 << 20

// Get is how to reach the cluster: of the file that --kubeconfig names, of those of
// KUBECONFIG, of the cluster that this runs in, or of ~/.kube/config.
func Get(path string) (*rest.Config, error) {
	if err := Check(path); err != nil {
		return nil, err
	}
	if path == "" {
		return config.GetConfig()
	}
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = path
	return clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
}

// Namespace is the one that commands are about, by the kubeconfig; empty: it names none, or cannot be read.
func Namespace() string {
	if Check("") != nil {
		return ""
	}
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	namespace, _, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).Namespace()
	if err != nil {
		return ""
	}
	return namespace
}

// Check finds what the Kubernetes client would read without an end, or wait for
// without one: it reads a kubeconfig several times, and whole.
func Check(path string) error {
	files := clientcmd.NewDefaultClientConfigLoadingRules().Precedence
	if path != "" {
		files = []string{path}
	}
	for _, file := range files {
		info, err := os.Stat(file)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			if e, ok := errors.AsType[*fs.PathError](err); ok {
				err = e.Err
			}
			return fmt.Errorf("read kubeconfig %s: %w", file, err)
		case !info.Mode().IsRegular():
			return fmt.Errorf("read kubeconfig %s: it is no file, and a kubeconfig is read several times: give the name of a file", file)
		case info.Size() > largest:
			return fmt.Errorf("read kubeconfig %s: it has more than %d MiB, which are the most that are read", file, largest>>20)
		}
	}
	return nil
}
