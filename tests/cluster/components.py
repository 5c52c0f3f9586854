"""Programs that run on the node, and their configuration.

Inside the node the usual paths are private to it: /var/lib/kubelet, /var/lib/containerd, /run/containerd (see `node`).
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.build import Built
from tests.cluster.layout import (
    API_PORT,
    NODE,
    NODE_ADDRESS,
    PAUSE_IMAGE,
    POD_NETWORK,
    SERVICE_NETWORK,
    ClusterError,
    Layout,
)

CSI_DRIVER = "csi.cdi.test"
LOCAL_PROVISIONER = "local.cdi.test"
"""Provisioner without a CSIDriver object."""

CNI_DIRECTORIES = (Path("/usr/lib/cni"), Path("/opt/cni/bin"), Path("/usr/libexec/cni"))
CONTAINERD_SOCKET = "/run/containerd/containerd.sock"
DNS_READY_PORT = 8181
_KUBELET = "/var/lib/kubelet"
_CSI_SOCKET = f"{_KUBELET}/plugins/{CSI_DRIVER}/csi.sock"
_MAX_PODS = 500
_CAP_SYS_RESOURCE = 24
_DISABLED_FEATURE = "PodObservedGenerationTracking"
"""KubeVirt 1.6 does not know the field and drops it from the conditions with which it guards its patches of pods."""
# The sidecars retry after what a test creates next; their default maximum interval is five minutes.
_RETRIES = ("--retry-interval-start=200ms", "--retry-interval-max=5s", "--kube-api-qps=100", "--kube-api-burst=200")


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """A program of the node; its log file has the same name."""

    name: str
    argv: tuple[str, ...]


def cni_directory() -> Path:
    """Return the directory with the CNI plugins.

    Raises:
        ClusterError: The plugins are not installed.
    """
    for directory in CNI_DIRECTORIES:
        if all((directory / plugin).exists() for plugin in ("bridge", "host-local", "loopback", "portmap")):
            return directory
    raise ClusterError("missing: the CNI plugins (containernetworking-plugins); scripts/setup cluster installs them")


def write_settings(layout: Layout) -> None:
    """Write every program's configuration file."""
    settings = layout.settings
    (settings / "cni").mkdir(parents=True, exist_ok=True)
    (settings / "registries").mkdir(exist_ok=True)
    documents = {
        "cni/10-pods.conflist": json.dumps(_cni()),
        "containerd.toml": _containerd(layout),
        "kubelet.yaml": json.dumps(_kubelet(layout)),
        "kube-proxy.yaml": json.dumps(_proxy(layout)),
        "resolv.conf": "",
        "Corefile": _corefile(layout),
    }
    for name, content in documents.items():
        (settings / name).write_text(content)


def _cni() -> dict[str, object]:
    return {
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "pods",
                "isGateway": True,
                "ipMasq": True,
                "hairpinMode": True,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": POD_NETWORK}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                    "dataDir": "/var/lib/cni/networks",
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }


def _containerd(layout: Layout) -> str:
    return f"""version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
  address = "{CONTAINERD_SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  disable_apparmor = true
  netns_mounts_under_state_dir = true
  # A pod's user owns the block devices that the pod is given, as KubeVirt and every importer of block volumes need it.
  device_ownership_from_security_context = true
  # Without CAP_SYS_RESOURCE no process can make another less likely to be killed, which Kubernetes asks for pods.
  restrict_oom_score_adj = {"false" if _may_set_resources() else "true"}
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{cni_directory()}"
    conf_dir = "{layout.settings}/cni"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{layout.settings}/registries"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    discard_unpacked_layers = true
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
"""


def _may_set_resources() -> bool:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> _CAP_SYS_RESOURCE & 1)
    return False


def _kubelet(layout: Layout) -> dict[str, object]:
    settings = layout.settings
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{layout.cgroup}",
        "failCgroupV1": False,
        "featureGates": {_DISABLED_FEATURE: False},
        "failSwapOn": False,
        "enforceNodeAllocatable": [],
        "oomScoreAdj": 0,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{settings}/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": f"{settings}/kubelet.crt",
        "tlsPrivateKeyFile": f"{settings}/kubelet.key",
        "clusterDNS": [NODE_ADDRESS],
        "clusterDomain": "cluster.local",
        "resolvConf": f"{settings}/resolv.conf",
        "maxPods": _MAX_PODS,
        "serializeImagePulls": False,
        # The disk is the machine's, however full it is: it must not cause evictions or image removal.
        "evictionHard": {
            "memory.available": "1Mi",
            "nodefs.available": "0%",
            "nodefs.inodesFree": "0%",
            "imagefs.available": "0%",
            "imagefs.inodesFree": "0%",
        },
        "imageGCHighThresholdPercent": 100,
        "imageMaximumGCAge": "0s",
    }


def _proxy(layout: Layout) -> dict[str, object]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": f"{layout.settings}/kube-proxy.kubeconfig"},
        "hostnameOverride": NODE,
        "mode": "iptables",
        "clusterCIDR": POD_NETWORK,
        "oomScoreAdj": 0,
        # The connection tracking limits belong to the machine, so the node must not set them.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "iptables": {"minSyncPeriod": "0s", "syncPeriod": "30s"},
    }


def _corefile(layout: Layout) -> str:
    return f""".:53 {{
    bind {NODE_ADDRESS}
    errors
    ready {NODE_ADDRESS}:{DNS_READY_PORT}
    kubernetes cluster.local in-addr.arpa {{
        kubeconfig {layout.settings}/admin.kubeconfig
        ttl 1
    }}
}}
"""


def runtime(layout: Layout) -> Component:
    """Return the container runtime."""
    return Component(name="containerd", argv=(_found("containerd"), "--config", f"{layout.settings}/containerd.toml"))


def store(layout: Layout, built: Built) -> Component:
    """Return etcd; it runs without fsync because its data does not outlive the cluster."""
    client, peer = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
    return Component(
        name="etcd",
        argv=(
            built.program("etcd"), "--name=node", f"--data-dir={layout.data}/etcd", "--unsafe-no-fsync",
            "--log-level=warn",
            f"--listen-client-urls={client}", f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=node={peer}",
        ),
    )  # fmt: skip


def api_server(layout: Layout, built: Built) -> Component:
    """Return the API server, with the admission plugins and the aggregation layer of a usual cluster."""
    settings = layout.settings
    return Component(
        name="kube-apiserver",
        argv=(
            built.program("kube-apiserver"),
            "--etcd-servers=http://127.0.0.1:2379",
            f"--advertise-address={NODE_ADDRESS}", f"--secure-port={API_PORT}", f"--cert-dir={layout.data}/apiserver",
            f"--service-cluster-ip-range={SERVICE_NETWORK}",
            "--allow-privileged=true", "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
            f"--client-ca-file={settings}/ca.crt",
            f"--tls-cert-file={settings}/apiserver.crt", f"--tls-private-key-file={settings}/apiserver.key",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={settings}/service-accounts.pub",
            f"--service-account-signing-key-file={settings}/service-accounts.key",
            f"--kubelet-client-certificate={settings}/apiserver-kubelet-client.crt",
            f"--kubelet-client-key={settings}/apiserver-kubelet-client.key",
            "--kubelet-preferred-address-types=InternalIP",
            f"--requestheader-client-ca-file={settings}/front-proxy-ca.crt",
            "--requestheader-allowed-names=front-proxy-client", "--requestheader-username-headers=X-Remote-User",
            "--requestheader-group-headers=X-Remote-Group", "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            f"--proxy-client-cert-file={settings}/front-proxy-client.crt",
            f"--proxy-client-key-file={settings}/front-proxy-client.key",
            "--profiling=false", f"--feature-gates={_DISABLED_FEATURE}=false",
        ),
    )  # fmt: skip


def control_plane(layout: Layout, built: Built) -> tuple[Component, ...]:
    """Return the controllers, scheduler and DNS server, which need nothing but the API server."""
    settings, admin = layout.settings, f"--kubeconfig={layout.settings}/admin.kubeconfig"

    def delegated(name: str) -> tuple[str, ...]:
        config = f"{settings}/{name}.kubeconfig"
        return (
            built.program(name), f"--kubeconfig={config}", f"--authentication-kubeconfig={config}",
            f"--authorization-kubeconfig={config}", f"--cert-dir={layout.data}/{name}", "--bind-address=127.0.0.1",
            "--leader-elect=false", "--profiling=false",
        )  # fmt: skip

    return (
        Component(
            name="kube-controller-manager",
            argv=(
                *delegated("kube-controller-manager"),
                "--use-service-account-credentials=true",
                f"--root-ca-file={settings}/ca.crt",
                f"--service-account-private-key-file={settings}/service-accounts.key",
                f"--cluster-signing-cert-file={settings}/ca.crt",
                f"--cluster-signing-key-file={settings}/ca.key",
            ),
        ),
        Component(name="kube-scheduler", argv=delegated("kube-scheduler")),
        Component(name="coredns", argv=(built.program("coredns"), "-conf", f"{settings}/Corefile")),
        Component(
            name="snapshot-controller",
            argv=(
                built.program("snapshot-controller"), admin, "--retry-interval-start=200ms", "--retry-interval-max=5s",
            ),
        ),
    )  # fmt: skip


def node_agents(layout: Layout, built: Built) -> tuple[Component, ...]:
    """Return the kubelet, kube-proxy and the storage drivers."""
    settings, admin = layout.settings, f"--kubeconfig={layout.settings}/admin.kubeconfig"
    tag = f"--tag={layout.loop_tag}"
    csi = f"--csi-address={_CSI_SOCKET}"
    return (
        Component(
            name="kubelet",
            argv=(
                built.program("kubelet"), f"--config={settings}/kubelet.yaml",
                f"--kubeconfig={settings}/kubelet.kubeconfig",
                f"--hostname-override={NODE}", f"--node-ip={NODE_ADDRESS}",
            ),
        ),
        Component(name="kube-proxy", argv=(built.program("kube-proxy"), f"--config={settings}/kube-proxy.yaml")),
        Component(
            name="csi-driver",
            argv=(
                built.program("csi-driver"), f"--name={CSI_DRIVER}", f"--node={NODE}", f"--state={layout.data}/csi",
                tag, f"--kubelet={_KUBELET}",
            ),
        ),
        Component(
            name="csi-provisioner",
            argv=(
                built.program("csi-provisioner"), admin, csi, *_RETRIES, "--extra-create-metadata",
                "--default-fstype=ext4",
            ),
        ),
        Component(name="csi-resizer", argv=(built.program("csi-resizer"), admin, csi, *_RETRIES)),
        Component(
            name="csi-snapshotter",
            argv=(built.program("csi-snapshotter"), admin, csi, *_RETRIES, "--extra-create-metadata"),
        ),
        Component(
            name="local-provisioner",
            argv=(
                built.program("local-provisioner"), admin, f"--name={LOCAL_PROVISIONER}", f"--node={NODE}",
                f"--state={layout.data}/local", tag,
            ),
        ),
    )  # fmt: skip


def _found(program: str) -> str:
    for directory in os.environ.get("PATH", os.defpath).split(":"):
        if os.access(candidate := os.path.join(directory, program), os.X_OK):
            return candidate
    raise ClusterError(f"missing: {program}")
