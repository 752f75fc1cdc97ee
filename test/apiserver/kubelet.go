package apiserver

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Run plays the kubelet for a worker pod, whose worker is at an address.
func (s *Server) Run(ctx context.Context, pod *corev1.Pod, address string) error {
	before := pod.DeepCopy()
	now := metav1.Now()
	pod.Status.Phase, pod.Status.PodIP, pod.Status.PodIPs, pod.Status.StartTime = corev1.PodRunning, address, []corev1.PodIP{{IP: address}}, &now
	pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: now}}
	pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "worker", Ready: true, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: now}}}}
	if err := s.Client.Status().Patch(ctx, pod, client.MergeFrom(before)); err != nil {
		return fmt.Errorf("run pod %s: %w", pod.Name, err)
	}
	return nil
}

// End plays the kubelet for a pod that is being deleted and has ended.
func (s *Server) End(ctx context.Context, pod *corev1.Pod) error {
	return client.IgnoreNotFound(s.Client.Delete(ctx, pod, client.GracePeriodSeconds(0)))
}
