// Command manifests prints the objects that install KubeVirt's operator, as one Kubernetes List.
//
//	manifests REGISTRY VERSION
//
// The operator and its components use the images REGISTRY/NAME:VERSION.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubevirt.io/kubevirt/pkg/virt-operator/resource/generate/components"
	"kubevirt.io/kubevirt/pkg/virt-operator/resource/generate/rbac"
)

const (
	namespace = "kubevirt"
	verbosity = "2"
)

func main() {
	if len(os.Args) != 3 {
		fail("usage: manifests REGISTRY VERSION")
	}
	registry, version := os.Args[1], os.Args[2]
	definition, err := components.NewKubeVirtCrd()
	if err != nil {
		fail("the KubeVirt definition: %v", err)
	}
	items := []any{newNamespace(), definition, components.NewKubeVirtPriorityClassCR()}
	items = append(items, rbac.GetAllOperator(namespace)...)
	items = append(items, newOperator(registry, version))
	list := map[string]any{"apiVersion": "v1", "kind": "List", "items": items}
	if err := json.NewEncoder(os.Stdout).Encode(list); err != nil {
		fail("writing the objects: %v", err)
	}
}

func newNamespace() *corev1.Namespace {
	return &corev1.Namespace{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"},
		ObjectMeta: metav1.ObjectMeta{
			Name: namespace,
			Labels: map[string]string{
				"kubevirt.io":                        "",
				"pod-security.kubernetes.io/enforce": "privileged",
			},
		},
	}
}

func newOperator(registry, version string) any {
	image := func(name string) string { return fmt.Sprintf("%s/%s:%s", registry, name, version) }
	const noDigest = "" // images are named by their tags
	deployment := components.NewOperatorDeployment(
		namespace, registry, "", version, verbosity, version,
		noDigest, noDigest, noDigest, noDigest, noDigest, noDigest, noDigest, noDigest, noDigest, noDigest,
		"",
		image("virt-api"), image("virt-controller"), image("virt-handler"), image("virt-launcher"),
		image("virt-exportproxy"), image("virt-exportserver"), image("virt-synchronization-controller"),
		image("libguestfs-tools"), image("pr-helper"), image("sidecar-shim"),
		image("virt-operator"), corev1.PullIfNotPresent,
	)
	replicas := int32(1) // the test cluster has one node
	deployment.Spec.Replicas = &replicas
	return deployment
}

func fail(format string, arguments ...any) {
	fmt.Fprintf(os.Stderr, "manifests: "+format+"\n", arguments...)
	os.Exit(1)
}
