package history

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/streaming/pkg/httpstream"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/estiba/estiba/api/v1alpha1"
	"github.com/estiba/estiba/controllers"
	"github.com/estiba/estiba/internal/kubeconfig"
)

const (
	// defaultNamespace of Estiba, for those who may not look for its lease everywhere.
	defaultNamespace = "estiba-system"
	// PortName of the operator's container port where it serves decisions; DefaultPort if there is none.
	PortName    = "debug"
	DefaultPort = 8083
)

// forward opens a tunnel to the operator that leads: by the API server to its
// pod's loopback, which takes the right to create pods/portforward there. It
// returns the address of this end.
func forward(ctx context.Context, namespace string) (address string, end func(), err error) {
	config, err := kubeconfig.Get("")
	if err != nil {
		return "", nil, fmt.Errorf("%w (name a cluster with KUBECONFIG, or an estiba serve with --server)", err)
	}
	c, err := client.New(config, client.Options{Scheme: scheme.Scheme})
	if err != nil {
		return "", nil, fmt.Errorf("connect to the cluster: %w", err)
	}
	pod, err := leader(ctx, c, namespace)
	if err != nil {
		return "", nil, err
	}
	port, end, err := tunnel(ctx, config, pod)
	if err != nil {
		return "", nil, fmt.Errorf("forward a port to the operator's pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return fmt.Sprintf("http://127.0.0.1:%d", port), end, nil
}

// leader is the pod of the operator that holds the lease; where there is none, the only operator.
func leader(ctx context.Context, c client.Client, namespace string) (*corev1.Pod, error) {
	lease, err := findLease(ctx, c, namespace)
	if err != nil {
		return nil, err
	}
	if lease != nil && lease.Spec.HolderIdentity != nil && *lease.Spec.HolderIdentity != "" {
		holder := *lease.Spec.HolderIdentity
		name := holder[:max(strings.LastIndexByte(holder, '_'), 0)]
		pod := &corev1.Pod{}
		err := c.Get(ctx, client.ObjectKey{Namespace: lease.Namespace, Name: name}, pod)
		if apierrors.IsNotFound(err) {
			return nil, fmt.Errorf("the operator that leads, %s, runs in no pod of namespace %s: ask it with --server, at its --debug-listen", holder, lease.Namespace)
		}
		if err != nil {
			return nil, fmt.Errorf("read the operator's pod: %w", err)
		}
		return pod, nil
	}
	var pods corev1.PodList
	namespace = cmp.Or(namespace, defaultNamespace)
	if err := c.List(ctx, &pods, client.InNamespace(namespace), client.MatchingLabels{v1alpha1.LabelName: "estiba", v1alpha1.LabelComponent: "operator"}); err != nil {
		return nil, fmt.Errorf("list the operator's pods in namespace %s: %w", namespace, err)
	}
	running := slices.DeleteFunc(pods.Items, func(p corev1.Pod) bool {
		return p.Status.Phase != corev1.PodRunning || !p.DeletionTimestamp.IsZero()
	})
	if len(running) == 0 {
		return nil, fmt.Errorf("no operator runs in namespace %s: say where Estiba is with --estiba-namespace, or ask an estiba serve with --server", namespace)
	}
	return &running[0], nil
}

// findLease is the lease of the operators; nil: there is none.
func findLease(ctx context.Context, c client.Client, namespace string) (*coordinationv1.Lease, error) {
	if namespace == "" {
		var all coordinationv1.LeaseList
		err := c.List(ctx, &all, client.MatchingFields{"metadata.name": controllers.LeaseName})
		switch {
		case apierrors.IsForbidden(err):
			namespace = defaultNamespace
		case err != nil:
			return nil, fmt.Errorf("look for lease %s: %w", controllers.LeaseName, err)
		case len(all.Items) == 0:
			return nil, nil
		case len(all.Items) > 1:
			var where []string
			for _, l := range all.Items {
				where = append(where, l.Namespace)
			}
			return nil, fmt.Errorf("namespaces %s each have an Estiba: say which with --estiba-namespace", strings.Join(where, ", "))
		default:
			return &all.Items[0], nil
		}
	}
	lease := &coordinationv1.Lease{}
	err := c.Get(ctx, client.ObjectKey{Namespace: namespace, Name: controllers.LeaseName}, lease)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read lease %s/%s: %w", namespace, controllers.LeaseName, err)
	}
	return lease, nil
}

// tunnel forwards a free local port to where pod serves decisions.
func tunnel(ctx context.Context, kubeconfig *rest.Config, pod *corev1.Pod) (port uint16, end func(), err error) {
	kubeconfig = rest.CopyConfig(kubeconfig)
	kubeconfig.APIPath, kubeconfig.GroupVersion = "/api", &corev1.SchemeGroupVersion
	kubeconfig.NegotiatedSerializer = scheme.Codecs.WithoutConversion()
	api, err := rest.RESTClientFor(kubeconfig)
	if err != nil {
		return 0, nil, err
	}
	url := api.Post().Resource("pods").Namespace(pod.Namespace).Name(pod.Name).SubResource("portforward").URL()
	overWebsocket, err := portforward.NewSPDYOverWebsocketDialerForStreaming(url, kubeconfig)
	if err != nil {
		return 0, nil, err
	}
	transport, upgrader, err := spdy.RoundTripperFor(kubeconfig)
	if err != nil {
		return 0, nil, err
	}
	dialer := portforward.NewFallbackDialerForStreaming(overWebsocket, spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: transport}, http.MethodPost, url), func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	})
	stop, ready := make(chan struct{}), make(chan struct{})
	var trouble bytes.Buffer // is read once the forwarder has ended
	f, err := portforward.NewOnAddressesForStreaming(dialer, []string{"127.0.0.1"}, []string{fmt.Sprintf("0:%d", debugPort(pod))}, stop, ready, io.Discard, &trouble)
	if err != nil {
		return 0, nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- f.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-ended:
		return 0, nil, err
	case <-ctx.Done():
		close(stop)
		return 0, nil, errors.Join(ctx.Err(), <-ended)
	}
	end = func() { close(stop); <-ended }
	ports, err := f.GetPorts()
	if err != nil {
		end()
		return 0, nil, err
	}
	return ports[0].Local, end, nil
}

func debugPort(pod *corev1.Pod) int32 {
	for _, c := range pod.Spec.Containers {
		for _, p := range c.Ports {
			if p.Name == PortName {
				return p.ContainerPort
			}
		}
	}
	return DefaultPort
}
