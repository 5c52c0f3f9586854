"""The Helm chart: rendering, validation by the API server, and operation in the cluster."""

import base64
import http.server
import json
import subprocess
import sys
import threading
import time
from http import HTTPStatus
from pathlib import Path

import pytest
import yaml

from tests.cluster import cdi_image
from tests.cluster import helm as helms
from tests.cluster.helm import CHART, HelmError
from tests.cluster.kubectl import KubectlError
from tests.cluster.layout import ClusterError, Layout
from tests.cluster.objects import is_phase, phase
from tests.cluster.settings import kept_config

ROOT = Path(__file__).parents[2]
SLOW = 300.0  # seconds for what takes about ten on an idle machine
CLUSTER_WIDE = {"CustomResourceDefinition", "CDI", "APIService"}
DISK = bytes(446) + bytes(64) + b"\x55\xaa" + bytes(1 << 20)
"""A raw disk with an empty partition table."""
DIGEST = "sha256:" + "0123456789abcdef" * 4

PROMETHEUS = {
    "metrics": {
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "podMonitor": {"enabled": True},
        "rules": {"enabled": True},
        "dashboard": {"enabled": True},
    }
}
BATCH = {
    "batch": [
        {"name": "once", "images": [{"name": "a", "url": "http://images/a.qcow2"}], "arguments": ["--keep-going"]},
        {
            "name": "nightly",
            "schedule": "0 3 * * *",
            "images": [{"name": "b", "url": "http://images/b.qcow2"}],
            "defaults": {"size": "10Gi"},
            "arguments": ["--update"],
            "timeoutSeconds": 7200,
        },
    ]
}
EVERYTHING = {
    **BATCH,
    "image": {"repository": "registry:5000/a/cdi", "digest": DIGEST, "pullPolicy": "Always", "pullSecrets": ["pull"]},
    "cdi": {
        "uninstallStrategy": "BlockUninstallIfWorkloadsExist",
        "cloneStrategyOverride": "copy",
        "workload": {"nodeSelector": {"disk": "fast"}, "tolerations": [{"key": "vm", "operator": "Exists"}]},
    },
    "config": {
        "featureGates": ["HonorWaitForFirstConsumer"],
        "filesystemOverhead": {"global": "0.1", "storageClass": {"local": "0"}},
        "importProxy": {"HTTPProxy": "http://proxy:3128", "noProxy": ".svc"},
        "insecureRegistries": ["registry:5000"],
    },
    "controller": {
        "replicas": 2,
        "workers": 8,
        "logLevel": "debug",
        "extraArgs": ["--kubeconfig=/dev/null"],
        "extraEnv": [{"name": "TZ", "value": "UTC"}],
        "podLabels": {"team": "storage"},
        "podAnnotations": {"a.example/b": "c"},
    },
    "apiserver": {"replicas": 3},
    "uploadProxy": {
        "replicas": 2,
        "logLevel": "debug",
        "drainSeconds": 60,
        "serviceType": "NodePort",
        "ingress": {
            "host": "uploads.example",
            "className": "nginx",
            "annotations": {"nginx.ingress.kubernetes.io/backend-protocol": "HTTPS"},
            "secretName": "uploads-tls",
        },
        "extraArgs": ["--kubeconfig=/dev/null"],
        "extraEnv": [{"name": "TZ", "value": "UTC"}],
        "podLabels": {"team": "storage"},
        "podAnnotations": {"a.example/b": "c"},
    },
    "infra": {
        "nodeSelector": {"infra": "yes"},
        "tolerations": [{"key": "infra", "operator": "Exists", "effect": "NoSchedule"}],
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}]
                }
            }
        },
        "priorityClassName": "system-cluster-critical",
    },
    "commonLabels": {"owner": "platform"},
    "networkPolicy": {
        "apiServer": {"cidrs": ["192.0.2.0/24"], "ports": [6443]},
        "dns": {"namespaceSelector": {"kubernetes.io/metadata.name": "kube-system"}, "podSelector": {"k8s-app": "dns"}},
        "metricsFrom": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}],
    },
}


def beside(*namespaces, **selector):
    return {"alongside": {"namespaces": list(namespaces), "selector": selector}}


@pytest.fixture(scope="module")
def helm(tmp_path_factory):
    """Return Helm without a cluster."""
    try:
        program = helms.build(Layout.default())
    except ClusterError as error:
        pytest.fail(str(error))
    return helms.Helm(program=program, home=tmp_path_factory.mktemp("helm"), namespace="system")


@pytest.fixture(scope="module")
def render(helm):
    """Return a function that renders the chart's documents for some values."""

    def rendered(values=None, *more, release="cdi", namespace="system"):
        text = helm.within(namespace).template(release, values, *more)
        return [each for each in yaml.load_all(text, yaml.CSafeLoader) if each]

    return rendered


def named(documents):
    return {(each["kind"], each["metadata"]["name"]) for each in documents}


def placed(documents):
    return {(each["metadata"].get("namespace"), *name) for each in documents for name in named([each])}


def find(documents, kind, name):
    (found,) = [each for each in documents if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


def pods(documents):
    """Yield the name and pod spec of each workload."""
    for each in documents:
        spec = each.get("spec", {})
        if each["kind"] == "CronJob":
            spec = spec["jobTemplate"]["spec"]
        if each["kind"] in ("Deployment", "Job", "CronJob"):
            yield each["metadata"]["name"], spec["template"]["spec"]


def containers(pod):
    return [*pod.get("initContainers", []), *pod["containers"]]


def configurations(namespace="system", *more):
    """Return the webhook configurations that the `apiserver` command prints."""
    command = [sys.executable, "-m", "cdi.cli.main", "apiserver", "--print-webhooks", f"--namespace={namespace}", *more]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    return list(yaml.load_all(printed, yaml.CSafeLoader))


# --- Rendering


@pytest.mark.parametrize("values", [{}, EVERYTHING, PROMETHEUS, beside("a", "b"), beside(who="us")])
def test_helm_finds_no_fault(helm, values):
    helm.run("lint", "--strict", str(CHART), values=values)


def test_by_default_it_makes_what_other_programs_look_up(render):
    plurals = {path.stem for path in (ROOT / "crds").glob("*.yaml")}
    assert named(render()) == {
        *(("CustomResourceDefinition", f"{plural}.cdi.kubevirt.io") for plural in plurals),
        *(("ClusterRole", f"cdi.kubevirt.io:{role}") for role in ("admin", "edit", "view", "clone-sourcer")),
        ("ClusterRole", "cdi.kubevirt.io:config-reader"),
        ("ClusterRoleBinding", "cdi.kubevirt.io:config-reader"),
        ("CDI", "cdi"),
        ("ConfigMap", "cdi-object"),
        ("Deployment", "cdi-deployment"),
        ("Deployment", "cdi-apiserver"),
        ("Deployment", "cdi-uploadproxy"),
        ("ServiceAccount", "cdi-sa"),
        ("ServiceAccount", "cdi-apiserver"),
        ("ServiceAccount", "cdi-uploadproxy"),
        ("Service", "cdi-api"),
        ("Service", "cdi-prometheus-metrics"),
        ("Service", "cdi-uploadproxy"),
        ("Service", "cdi-uploadproxy-metrics"),
        ("APIService", UPLOAD_API),
        ("NetworkPolicy", "cdi-controller"),
        ("NetworkPolicy", "cdi-apiserver"),
        ("NetworkPolicy", "cdi-uploadproxy"),
        ("NetworkPolicy", "cdi-allow-egress-from-poller"),
        *((kind, "cdi-cronjob") for kind in ("ServiceAccount", "ClusterRole")),
        ("ClusterRole", "cdi"),
        *((kind, "cdi-metrics-reader") for kind in ("ServiceAccount", "ClusterRole", "ClusterRoleBinding")),
        ("Secret", "cdi-metrics-reader-token"),
        ("ClusterRoleBinding", "cdi-sa"),
        *((kind, "cdi-deployment") for kind in ("Role", "RoleBinding")),
        *((kind, "cdi-apiserver") for kind in RIGHTS),
        ("ClusterRole", "cdi-uploadproxy"),
        ("ClusterRoleBinding", "cdi-uploadproxy"),
        ("Secret", "cdi-apiserver-signer"),
        ("Secret", "cdi-apiserver-server-cert"),
        ("Secret", "cdi-apiserver-webhook-path"),
        ("ConfigMap", "cdi-apiserver-signer-bundle"),
        *(("Secret", name) for name in UPLOAD_SECRETS),
        *(("ConfigMap", f"cdi-{name}-signer-bundle") for name in UPLOAD_SIGNERS),
        ("Lease", "cdi-controller"),
        *((each["kind"], each["metadata"]["name"]) for each in configurations()),
    }


RIGHTS = ("ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")
UPLOAD_SIGNERS = ("uploadserver", "uploadserver-client", "uploadproxy")
UPLOAD_API = "v1beta1.upload.cdi.kubevirt.io"
UPLOAD_SECRETS = {
    *(f"cdi-{name}-signer" for name in UPLOAD_SIGNERS),
    "cdi-uploadserver-client-cert",
    "cdi-uploadproxy-server-cert",
    "cdi-api-signing-key",
}
COMPONENTS = {"cdi-deployment": "controller", "cdi-apiserver": "apiserver", "cdi-uploadproxy": "uploadProxy"}
"""Deployments, and the component label of their pods."""


@pytest.mark.parametrize("values", [{}, EVERYTHING, beside("a")], ids=["default", "everything", "beside"])
def test_every_pod_keeps_to_the_restricted_standard_and_the_one_image(render, values):
    image = f"registry:5000/a/cdi@{DIGEST}" if "image" in values else "images.cdi.test/cdi:1"
    found = list(pods(render(values, release="second" if "alongside" in values else "cdi")))
    deployments = COMPONENTS if "alongside" not in values else ("second-deployment", "second-apiserver")
    assert len(found) == len(deployments) + len(values.get("batch", []))
    assert set(deployments) <= {name for name, _ in found}
    for name, pod in found:
        assert pod["securityContext"] == {
            "runAsNonRoot": True,
            "runAsUser": 107,
            "runAsGroup": 107,
            "fsGroup": 107,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        kinds = {"emptyDir", "configMap", *({"secret"} if name == "cdi-uploadproxy" else ())}
        assert {kind for volume in pod["volumes"] for kind in volume if kind != "name"} <= kinds
        for each in containers(pod):
            assert each["image"] == image
            assert each["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "runAsNonRoot": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert each["resources"]["limits"]["memory"]
            assert each["resources"]["requests"]["cpu"]


OPENSHIFT = "--api-versions=security.openshift.io/v1"


@pytest.mark.parametrize("values", [{}, EVERYTHING, beside("a")], ids=["default", "everything", "beside"])
def test_on_openshift_the_control_plane_keeps_to_the_restricted_policy(render, values):
    documents = render(values, OPENSHIFT, release="second" if "alongside" in values else "cdi")
    for _, pod in pods(documents):
        assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    for each in documents:
        if each["kind"] == "Deployment":
            annotations = each["spec"]["template"]["metadata"]["annotations"]
            assert annotations["openshift.io/required-scc"] == "restricted-v2"


@pytest.mark.parametrize(
    ("values", "name", "account"),
    [({}, "containerized-data-importer", "cdi-sa"), (beside("a"), "system-second-workers", "second-sa")],
    ids=["default", "beside"],
)
def test_on_openshift_worker_pods_may_have_their_user(render, values, name, account):
    documents = render(values, OPENSHIFT, release="second" if values else "cdi")
    policy = find(documents, "SecurityContextConstraints", name)
    assert policy["users"] == [f"system:serviceaccount:system:{account}"]
    assert policy["runAsUser"] == {"type": "MustRunAsNonRoot"}
    assert policy["requiredDropCapabilities"] == ["ALL"]
    assert policy["defaultAddCapabilities"] == []
    assert {key for key, value in policy.items() if key.startswith("allow") and value} == set()
    assert not [each for each in render(values, release="x") if each["kind"] == "SecurityContextConstraints"]


def test_the_kinds_that_populate_claims_are_registered_where_a_validator_asks(render):
    def registered(*arguments):
        made = [each for each in render({}, *arguments) if each["kind"] == "VolumePopulator"]
        return {each["metadata"]["name"]: each["sourceKind"] for each in made}

    kinds = ("VolumeImportSource", "VolumeCloneSource", "VolumeUploadSource")
    assert registered() == {}
    assert registered("--api-versions=populator.storage.k8s.io/v1beta1") == {
        kind.lower(): {"group": "cdi.kubevirt.io", "kind": kind} for kind in kinds
    }


def test_the_upload_proxy_has_no_more_of_a_secret_than_it_needs(render):
    for values in ({}, EVERYTHING):
        pod = dict(pods(render(values)))["cdi-uploadproxy"]
        secrets = [volume["secret"] for volume in pod["volumes"] if "secret" in volume]
        assert {each["secretName"]: {item["key"] for item in each["items"]} for each in secrets} == {
            "cdi-uploadproxy-server-cert": {"tls.crt", "tls.key"},
            "cdi-uploadserver-client-cert": {"tls.crt", "tls.key"},
            "cdi-api-signing-key": {"id_rsa.pub"},
        }
        assert {each["defaultMode"] for each in secrets} == {0o440}


def test_uploads_can_be_left_out(render):
    """The objects for keys and certificates stay: the controller creates those in any case."""
    without = render({"uploadProxy": {"create": False}})
    assert named(render()) - named(without) == {
        *((kind, "cdi-uploadproxy") for kind in ("Deployment", "Service", "ServiceAccount", "NetworkPolicy")),
        *((kind, "cdi-uploadproxy") for kind in ("ClusterRole", "ClusterRoleBinding")),
        ("Service", "cdi-uploadproxy-metrics"),
        ("APIService", UPLOAD_API),
    }


def test_without_an_api_server_it_claims_no_api(render):
    """An APIService without a server would block the deletion of every namespace."""
    assert not [each for each in render({"apiserver": {"replicas": 0}}) if each["kind"] == "APIService"]


def test_an_ingress_leads_to_the_upload_proxy(render):
    assert not [each for each in render() if each["kind"] == "Ingress"]
    documents = render(EVERYTHING)
    ingress = find(documents, "Ingress", "cdi-uploadproxy")
    assert ingress["metadata"]["annotations"] == EVERYTHING["uploadProxy"]["ingress"]["annotations"]
    (rule,) = ingress["spec"]["rules"]
    assert rule["host"] == "uploads.example"
    assert ingress["spec"]["tls"] == [{"hosts": ["uploads.example"], "secretName": "uploads-tls"}]
    assert ingress["spec"]["ingressClassName"] == "nginx"
    backend = rule["http"]["paths"][0]["backend"]["service"]
    service = find(documents, "Service", backend["name"])["spec"]
    assert backend["port"]["name"] in {port["name"] for port in service["ports"]}
    assert service["type"] == "NodePort"


def test_workers_get_the_image_that_the_controller_has(render):
    controller = find(render(EVERYTHING), "Deployment", "cdi-deployment")["spec"]["template"]["spec"]
    (container,) = controller["containers"]
    for name in ("IMPORTER_IMAGE", "CLONER_IMAGE", "UPLOADSERVER_IMAGE"):
        assert {"name": name, "value": container["image"]} in container["env"]
    assert {"name": "TZ", "value": "UTC"} in container["env"]
    assert not [each for each in container["args"] if each.startswith("--image")], "one place says which it is"
    assert {"name": "PULL_POLICY", "value": container["imagePullPolicy"]} in container["env"]
    assert "--workers=8" in container["args"]
    assert controller["imagePullSecrets"] == [{"name": "pull"}]


def labels_of(documents):
    """Return the pod labels by Deployment."""
    made = [each for each in documents if each["kind"] == "Deployment"]
    return {each["metadata"]["name"]: each["spec"]["template"]["metadata"]["labels"] for each in made}


def test_pods_of_the_control_plane_have_the_labels_that_tools_select_by(render):
    found = labels_of(render())
    assert found.keys() == COMPONENTS.keys()
    for name, labels in found.items():
        assert labels["app"] == "containerized-data-importer"
        assert labels["cdi.kubevirt.io"] == name


def test_every_object_has_the_label_that_tools_find_kubevirts_cdi_by(render):
    documents = render({**EVERYTHING, **PROMETHEUS})
    assert [each["metadata"]["name"] for each in documents if "cdi.kubevirt.io" not in each["metadata"]["labels"]] == []
    for name in COMPONENTS:
        labels = find(documents, "Deployment", name)["metadata"]["labels"]
        assert labels["app"] == "containerized-data-importer"
        assert labels["cdi.kubevirt.io"] == name
        assert labels["prometheus.cdi.kubevirt.io"] == "true"
    assert find(documents, "Service", "cdi-uploadproxy")["metadata"]["labels"]["cdi.kubevirt.io"] == "cdi-uploadproxy"


@pytest.mark.parametrize("values", [{}, beside("a")], ids=["default", "beside"])
def test_policies_that_allow_cluster_services_select_the_control_plane(render, values):
    found = labels_of(render(values, release="second" if values else "cdi"))
    assert found
    for labels in found.values():
        assert labels["np.kubevirt.io/allow-access-cluster-services"] == "true"


def test_roles_of_the_controller_have_the_names_of_kubevirts_cdi(render):
    documents = render()
    account = {"kind": "ServiceAccount", "name": "cdi-sa", "namespace": "system"}
    for kind, name, role in (
        ("ClusterRoleBinding", "cdi-sa", "cdi"),
        ("RoleBinding", "cdi-deployment", "cdi-deployment"),
    ):
        binding = find(documents, kind, name)
        assert binding["subjects"] == [account]
        assert binding["roleRef"]["name"] == role
        assert find(documents, kind.removesuffix("Binding"), role)["rules"]


def test_what_is_for_worker_pods_does_not_select_the_control_plane(render):
    """Selectors for workers must not match the control plane, which may share a namespace with volumes."""
    values = {"networkPolicy": {"workers": {"namespaces": ["system"]}}, **PROMETHEUS}
    documents = render(values)
    policies = [each for each in documents if each["kind"] == "NetworkPolicy"]
    about_workers = {each["metadata"]["name"]: each["spec"]["podSelector"] for each in policies}
    selectors = [about_workers[name] for name in ("cdi-workers", "cdi-receivers", "cdi-clone-sources")]
    selectors.append(find(documents, "PodMonitor", "cdi-workers")["spec"]["selector"])
    for labels in labels_of(documents).values():
        assert not [selector for selector in selectors if selects(selector, labels)]
    for component in ("importer", "cdi-upload-server", "cdi-clone-source"):
        worker = {
            "app": "containerized-data-importer",
            "cdi.kubevirt.io": component,
            "prometheus.cdi.kubevirt.io": "true",
        }
        assert [selector for selector in selectors if selects(selector, worker)]


def selects(selector, labels):
    """Evaluate a label selector, as far as the chart uses them."""
    assert selector.keys() <= {"matchLabels", "matchExpressions"}, selector
    expressions = selector.get("matchExpressions", [])
    assert all(each["operator"] == "In" for each in expressions)
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        labels.get(each["key"]) in each["values"] for each in expressions
    )


def test_the_config_becomes_the_cdi_object(render):
    documents = render(EVERYTHING)
    applied = yaml.safe_load(find(documents, "ConfigMap", "cdi-object")["data"]["cdi.yaml"])
    assert applied["spec"]["config"] == {
        **EVERYTHING["config"],
        "podResourceRequirements": {
            "requests": {"cpu": "100m", "memory": "60M"},
            "limits": {"cpu": "2", "memory": "600M"},
        },
        "imagePullSecrets": [{"name": "pull"}],
    }
    assert applied["spec"]["workload"] == EVERYTHING["cdi"]["workload"]
    hook = find(documents, "CDI", "cdi")
    assert hook["metadata"]["annotations"]["helm.sh/hook"] == "pre-delete"
    assert hook["spec"] == applied["spec"]


def test_another_config_is_another_pod(render):
    def template(values):
        return find(render(values), "Deployment", "cdi-deployment")["spec"]["template"]

    assert template({}) == template({})
    assert template({}) != template({"config": {"preallocation": True}})


def test_definitions_stay_unless_told_otherwise(render):
    def policies(values):
        return {
            each["metadata"].get("annotations", {}).get("helm.sh/resource-policy")
            for each in render(values)
            if each["kind"] == "CustomResourceDefinition"
        }

    assert policies({}) == {"keep"}
    assert policies({"crds": {"keep": False}}) == {None}
    assert policies({"crds": {"install": False}}) == set()


def test_the_definitions_are_the_projects(render):
    for path in sorted((ROOT / "crds").glob("*.yaml")):
        own = yaml.load(path.read_text(), yaml.CSafeLoader)
        made = find(render(), "CustomResourceDefinition", own["metadata"]["name"])
        assert made["spec"] == own["spec"]
        assert own["metadata"].get("annotations", {}).items() <= made["metadata"]["annotations"].items()


def test_copies_are_not_disrupted_all_at_once(render):
    assert not [each for each in render() if each["kind"] == "PodDisruptionBudget"]
    documents = render(EVERYTHING)
    for deployment, part in COMPONENTS.items():
        budget = find(documents, "PodDisruptionBudget", f"cdi-{part.lower()}")
        labels = find(documents, "Deployment", deployment)["spec"]["template"]["metadata"]["labels"]
        assert budget["spec"]["selector"]["matchLabels"].items() <= labels.items()
        assert labels["app.kubernetes.io/component"] == part


def test_selectors_are_those_of_the_pods_and_never_change(render):
    """An upgrade cannot change a Deployment's selector, but can change other labels."""
    for values in ({}, EVERYTHING):
        for name, part in COMPONENTS.items():
            assert find(render(values), "Deployment", name)["spec"]["selector"]["matchLabels"] == {
                "app.kubernetes.io/name": "cdi",
                "app.kubernetes.io/instance": "cdi",
                "app.kubernetes.io/component": part,
            }


def test_where_the_control_plane_runs(render):
    for name, pod in pods(render({**EVERYTHING, "batch": []})):
        assert pod["nodeSelector"]["infra"] == "yes"
        assert pod["tolerations"] == EVERYTHING["infra"]["tolerations"]
        assert pod["affinity"] == EVERYTHING["infra"]["affinity"]
        assert pod["priorityClassName"] == "system-cluster-critical"
        (spread,) = pod["topologySpreadConstraints"]
        assert spread["labelSelector"]["matchLabels"]["app.kubernetes.io/component"] == COMPONENTS[name]


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({"imgae": {}}, "imgae"),
        ({"image": {"repo": "x"}}, "repo"),
        ({"image": {"digest": "sha256:short"}}, "digest"),
        ({"config": {"preallocations": True}}, "preallocations"),
        ({"config": {"filesystemOverhead": {"global": "6%"}}}, "global"),
        ({"controller": {"replicas": "two"}}, "replicas"),
        ({"cdi": {"uninstallStrategy": "Ask"}}, "uninstallStrategy"),
        ({"cdi": {"workload": {"nodeSelectors": {}}}}, "nodeSelectors"),
        ({"alongside": {"namespaces": ["Upper"]}}, "namespaces"),
        ({"batch": [{"name": "no-images"}]}, "images"),
    ],
)
def test_values_that_are_wrong_are_refused_by_name(helm, values, where):
    with pytest.raises(HelmError, match=where):
        helm.template("cdi", values)


def test_a_jobs_name_changes_with_what_it_does(render):
    def job(**changes):
        values = {"batch": [{**BATCH["batch"][0], **changes}]}
        (found,) = [each for each in render(values) if each["kind"] == "Job"]
        return found["metadata"]["name"]

    assert job() == job()
    assert len({job(), job(images=[{"name": "c", "url": "http://images/c"}]), job(arguments=[])}) == 3


def test_a_batch_is_the_file_that_was_given(render):
    documents = render(BATCH)
    content = yaml.safe_load(find(documents, "ConfigMap", "cdi-batch-nightly")["data"]["images.yaml"])
    assert content == {name: BATCH["batch"][1][name] for name in ("images", "defaults")}
    job = find(documents, "CronJob", "cdi-batch-nightly")["spec"]["jobTemplate"]["spec"]
    assert job["activeDeadlineSeconds"] == 7200
    assert job["template"]["spec"]["containers"][0]["args"] == ["/etc/cdi/images.yaml", "--update"]


@pytest.mark.parametrize("more", [(), ("a", "b")], ids=["everywhere", "beside"])
def test_the_webhooks_are_those_that_the_api_server_serves(render, more):
    if more:
        beside_options = (f"--watch-namespaces={','.join(more)}", "--selector=who=us", "--prefix=second")
        expected = configurations("second", *beside_options, "--webhook-prefix=second-second-api")
        expected = [each for each in expected if each["webhooks"][0]["rules"][0]["scope"] == "Namespaced"]
        documents = render(beside(*more, who="us"), release="second", namespace="second")
    else:
        expected, documents = configurations(), render()
    made = [each for each in documents if each["kind"].endswith("WebhookConfiguration")]
    assert len(made) == len(expected)
    for own in expected:
        found = find(made, own["kind"], own["metadata"]["name"])
        assert found["webhooks"] == own["webhooks"]
        assert own["metadata"]["labels"].items() <= found["metadata"]["labels"].items()


def test_monitoring_is_what_the_files_say(render):
    documents = render(PROMETHEUS)
    rules = find(documents, "PrometheusRule", "prometheus-cdi-rules")
    assert rules["spec"] == yaml.safe_load((CHART / "files" / "rules.yaml").read_text())
    assert rules["spec"]["groups"]
    dashboard = find(documents, "ConfigMap", "cdi-dashboard")
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(dashboard["data"]["cdi.json"]) == json.loads((CHART / "files" / "dashboard.json").read_text())
    monitor = find(documents, "ServiceMonitor", "service-monitor-cdi")
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    for service in ("cdi-prometheus-metrics", "cdi-api", "cdi-uploadproxy-metrics"):
        found = find(documents, "Service", service)
        assert monitor["spec"]["selector"]["matchLabels"].items() <= found["metadata"]["labels"].items()
        ports = {each["name"] for each in found["spec"]["ports"]}
        assert ports & {each["port"] for each in monitor["spec"]["endpoints"]}


def ports_of(documents, deployment):
    (container,) = find(documents, "Deployment", deployment)["spec"]["template"]["spec"]["containers"]
    probes = {container[f"{kind}Probe"]["httpGet"]["port"] for kind in ("startup", "liveness", "readiness")}
    return {each["name"]: each["containerPort"] for each in container["ports"]}, probes, container["args"]


def test_metrics_of_the_controller_need_a_token(render):
    documents = render(PROMETHEUS)
    assert ports_of(documents, "cdi-deployment")[:2] == ({"health": 8080, "metrics": 8443}, {"health"})
    assert "--metrics-port=8443" in ports_of(documents, "cdi-deployment")[2]
    (port,) = find(documents, "Service", "cdi-prometheus-metrics")["spec"]["ports"]
    assert port == {"name": "metrics", "port": 8443, "targetPort": "metrics"}
    (endpoint,) = [
        each
        for each in find(documents, "ServiceMonitor", "service-monitor-cdi")["spec"]["endpoints"]
        if each["port"] == "metrics"
    ]
    assert endpoint["scheme"] == "https"
    secret = find(documents, "Secret", endpoint["authorization"]["credentials"]["name"])
    assert secret["type"] == "kubernetes.io/service-account-token"
    account = find(documents, "ServiceAccount", secret["metadata"]["annotations"]["kubernetes.io/service-account.name"])
    binding = find(documents, "ClusterRoleBinding", "cdi-metrics-reader")
    assert binding["subjects"][0]["name"] == account["metadata"]["name"]
    assert find(documents, "ClusterRole", binding["roleRef"]["name"])["rules"] == [
        {"nonResourceURLs": ["/metrics"], "verbs": ["get"]}
    ]
    reviews = {
        resource
        for rule in find(documents, "ClusterRole", "cdi")["rules"]
        for resource in rule["resources"]
        if resource.endswith("reviews")
    }
    assert reviews == {"tokenreviews", "subjectaccessreviews"}


def rights(documents, kind, name):
    """Return the verbs of each resource; one that is limited to names is left out."""
    found = {}
    for rule in find(documents, kind, name)["rules"]:
        for resource in rule.get("resources", []):
            if "resourceNames" not in rule:
                found.setdefault(resource, set()).update(rule["verbs"])
    return found


def test_the_controller_may_do_what_dataimportcrons_need(render):
    documents = render()
    everywhere = rights(documents, "ClusterRole", "cdi")
    reads = {"get", "list", "watch"}
    assert everywhere["dataimportcrons"] == reads | {"patch", "update", "create", "delete"}
    assert everywhere["dataimportcrons/finalizers"] == {"update"}
    assert everywhere["datasources"] == reads | {"patch", "create", "delete"}
    assert everywhere["volumesnapshots"] == reads | {"create", "patch", "delete"}
    assert everywhere["imagestreams"] == reads
    assert everywhere["subjectaccessreviews"] == {"create"}
    here = rights(documents, "Role", "cdi-deployment")
    for resource in ("cronjobs", "jobs"):
        assert here[resource] == reads | {"create", "update", "patch", "delete", "deletecollection"}
    assert here["pods"] == reads | {"delete"}
    # Copies of what a poll's pod mounts.
    assert here["secrets"] == here["configmaps"] == {"get", "create", "update"}
    assert "cronjobs" not in everywhere


def test_poll_pods_have_an_account_without_rights(render):
    documents = render()
    assert find(documents, "ServiceAccount", "cdi-cronjob")["automountServiceAccountToken"] is False
    assert rights(documents, "ClusterRole", "cdi-cronjob") == {"dataimportcrons": {"get", "list", "update", "patch"}}
    subjects = [each for each in documents if each["kind"].endswith("Binding")]
    assert not [each for each in subjects for subject in each["subjects"] if subject["name"] == "cdi-cronjob"]
    beside_another = render(beside("a"), release="second")
    assert find(beside_another, "ServiceAccount", "second-cronjob")
    assert ("ClusterRole", "second-cronjob") not in named(beside_another)


@pytest.mark.parametrize("role", ["admin", "edit", "view"])
def test_users_get_dataimportcrons_by_their_role(render, role):
    verbs = rights(render(), "ClusterRole", f"cdi.kubevirt.io:{role}")["dataimportcrons"]
    assert verbs == ({"get", "list", "watch"} if role == "view" else {"*"})


@pytest.mark.parametrize("secure", [False, None], ids=["off", "values of an earlier release"])
def test_metrics_can_be_left_to_everybody(render, secure):
    documents = render({"metrics": {**PROMETHEUS["metrics"], "secure": secure}})
    ports, probes, arguments = ports_of(documents, "cdi-deployment")
    assert (ports, probes) == ({"metrics": 8080}, {"metrics"})
    assert not [each for each in arguments if each.startswith("--metrics-port")]
    (port,) = find(documents, "Service", "cdi-prometheus-metrics")["spec"]["ports"]
    assert port["port"] == 8080
    endpoints = find(documents, "ServiceMonitor", "service-monitor-cdi")["spec"]["endpoints"]
    assert not [each for each in endpoints if "authorization" in each]
    assert not [name for _, name in named(documents) if "metrics-reader" in name]
    rules = find(documents, "ClusterRole", "cdi")["rules"]
    assert not [rule for rule in rules if "tokenreviews" in rule["resources"]]


def test_whoever_may_only_view_a_namespace_may_not_clone_from_it(render):
    documents = render()

    def may_clone(role):
        rules = find(documents, "ClusterRole", f"cdi.kubevirt.io:{role}")["rules"]
        return any("datavolumes/source" in rule["resources"] and "create" in rule["verbs"] for rule in rules)

    assert {role: may_clone(role) for role in ("admin", "edit", "view", "clone-sourcer", "config-reader")} == {
        "admin": True,
        "edit": True,
        "view": False,
        "clone-sourcer": True,
        "config-reader": False,
    }
    labels = find(documents, "ClusterRole", "cdi.kubevirt.io:clone-sourcer")["metadata"]["labels"]
    assert not [name for name in labels if name.startswith("rbac.authorization.k8s.io/aggregate-to")]


def test_webhooks_can_be_left_out(render):
    documents = render({"webhooks": {"create": False}})
    assert not [each for each in documents if "Webhook" in each["kind"]]
    rules = find(documents, "ClusterRole", "cdi-apiserver")["rules"]
    patched = [(rule["resources"], rule["resourceNames"]) for rule in rules if "patch" in rule["verbs"]]
    # The caBundle of the upload token API, which is not a webhook.
    assert patched == [(["apiservices"], [UPLOAD_API])]
    rules = find(
        render({"webhooks": {"create": False}, "uploadProxy": {"create": False}}), "ClusterRole", "cdi-apiserver"
    )
    assert "patch" not in {verb for rule in rules["rules"] for verb in rule["verbs"]}


def looked_at(documents):
    """Return the Deployments whose state the controller may read."""
    rules = find(documents, "Role", "cdi-deployment")["rules"]
    return {name for rule in rules if rule["resources"] == ["deployments"] for name in rule["resourceNames"]}


def test_the_controller_is_told_what_else_there_is_to_look_at(render):
    def parts(values, name):
        (container,) = find(render(values), "Deployment", name)["spec"]["template"]["spec"]["containers"]
        return [one.removeprefix("--component=") for one in container["args"] if one.startswith("--component=")]

    documents = render({})
    hooks = sorted(f"{kind.lower()}/{name}" for kind, name in named(documents) if kind.endswith("WebhookConfiguration"))
    both = ["deployment/cdi-apiserver", "deployment/cdi-uploadproxy"]
    assert hooks
    assert sorted(parts({}, "cdi-deployment")) == sorted([*both, *hooks])
    assert {("Deployment", "cdi-apiserver"), ("Deployment", "cdi-uploadproxy")} <= named(documents)
    assert looked_at(documents) == {"cdi-apiserver", "cdi-uploadproxy"}
    assert parts({"webhooks": {"create": False}}, "cdi-deployment") == both
    alone = {"uploadProxy": {"create": False}}
    assert sorted(parts(alone, "cdi-deployment")) == sorted(["deployment/cdi-apiserver", *hooks])
    assert looked_at(render(alone)) == {"cdi-apiserver"}
    # Beside another CDI, it has no CDI object to report the state in.
    assert parts({"alongside": {"namespaces": ["a"]}}, "cdi-deployment") == []


def test_a_batch_may_read_the_secrets_that_its_images_name_and_no_other(render):
    images = [
        {"name": "a", "url": "s3://images/a", "secretRef": "s3-login"},
        {"name": "b", "source": {"http": {"url": "https://b", "secretRef": "web", "secretExtraHeaders": ["token"]}}},
        {"name": "c", "source": {"registry": {"url": "docker://c", "certConfigMap": "authority"}}},
        {"name": "d", "source": {"blank": None}, "size": "1Gi"},
    ]
    batch = {"name": "x", "images": images, "defaults": {"secretRef": "web"}, "targetNamespace": "golden"}
    role = find(render({"batch": [batch]}), "Role", "cdi-batch-x")
    assert role["metadata"]["namespace"] == "golden"
    named_ones = {
        rule["resources"][0]: (rule["resourceNames"], rule["verbs"])
        for rule in role["rules"]
        if "resourceNames" in rule
    }
    assert named_ones == {"secrets": (["s3-login", "token", "web"], ["get"]), "configmaps": (["authority"], ["get"])}
    plain = find(render(BATCH), "Role", "cdi-batch-once")["rules"]
    assert not {"secrets", "configmaps"} & {resource for rule in plain for resource in rule["resources"]}


# --- Beside another CDI


@pytest.mark.parametrize("values", [beside("a", "b"), beside(who="us")], ids=["namespaces", "selector"])
def test_beside_another_it_shares_no_name_with_it(render, values):
    other = placed(render())
    documents = render(values, release="second", namespace="second")
    assert placed(documents) & other == set()
    assert CLUSTER_WIDE & {each["kind"] for each in documents} == set()


@pytest.mark.parametrize("values", [beside("a", "b"), beside(who="us")], ids=["namespaces", "selector"])
def test_beside_another_in_its_namespace_it_takes_up_nothing_of_it(render, values):
    other = {(kind, name) for kind, name in named(render()) if kind != "CustomResourceDefinition"}
    documents = render(values, release="second")
    assert named(documents) & other == set()
    used = {
        (resource, name)
        for each in documents
        if each["kind"] == "Role" and each["metadata"]["namespace"] == "system"
        for rule in each["rules"]
        for resource in rule["resources"]
        for name in rule.get("resourceNames", ())
    }
    assert ("leases", "second-controller") in used
    assert ("secrets", "second-api-signing-key") in used
    assert {name for _, name in used if not name.startswith("second-")} == set()
    for program in ("deployment", "apiserver"):
        (container,) = find(documents, "Deployment", f"second-{program}")["spec"]["template"]["spec"]["containers"]
        assert "--prefix=second" in container["args"]


OTHERS = (
    {"app": "containerized-data-importer"},
    {"cdi.kubevirt.io": "cdi-apiserver"},
    {"cdi.kubevirt.io": "cdi-uploadproxy"},
    {"prometheus.cdi.kubevirt.io": "true"},
)
"""Selectors of the Services, monitors and Deployments of KubeVirt's CDI."""


@pytest.mark.parametrize("values", [beside("a", "b"), beside(who="us")], ids=["namespaces", "selector"])
def test_beside_another_the_others_services_lead_to_none_of_its_pods(render, values):
    documents = render(values, release="second")
    labelled = [*labels_of(documents).values()]
    labelled += [each["metadata"]["labels"] for each in documents if each["kind"] == "Service"]
    for labels in labelled:
        assert not [selector for selector in OTHERS if selector.items() <= labels.items()]


def test_beside_another_it_has_rights_where_it_serves_only(render):
    documents = render(beside("a", "b"), release="second", namespace="second")
    wide = find(documents, "ClusterRole", "second-second-controller")["rules"]
    assert {resource for rule in wide for resource in rule["resources"]} == {
        "persistentvolumes",
        "nodes",
        "storageclasses",
        "volumesnapshotclasses",
        "volumesnapshotcontents",
        "csidrivers",
        "cdis",
        "cdiconfigs",
        "storageprofiles",
        "objecttransfers",
        "objecttransfers/status",
        "tokenreviews",
        "subjectaccessreviews",
    }
    roles = [each for each in documents if each["kind"] == "Role"]
    # Events about cluster-scoped objects are stored in "default".
    assert {each["metadata"]["namespace"] for each in roles} == {"a", "b", "second", "default"}
    (events,) = [each for each in roles if each["metadata"]["namespace"] == "default"]
    assert events["rules"] == [{"apiGroups": [""], "resources": ["events"], "verbs": ["create", "patch"]}]
    (elsewhere,) = [
        each
        for each in documents
        if each["kind"] == "RoleBinding" and each["metadata"]["namespace"] not in ("a", "b", "second", "default")
    ]
    # The ConfigMap with which Kubernetes publishes how its API server authenticates itself.
    assert elsewhere["metadata"]["namespace"] == "kube-system"
    assert elsewhere["roleRef"]["name"] == "extension-apiserver-authentication-reader"
    assert [each["name"] for each in elsewhere["subjects"]] == ["second-apiserver"]
    (controller,) = find(documents, "Deployment", "second-deployment")["spec"]["template"]["spec"]["containers"]
    assert "--watch-namespaces=a,b" in controller["args"]


def test_beside_another_it_serves_what_has_the_labels(render):
    documents = render(beside(who="us", tier="x"), release="second", namespace="second")
    (controller,) = find(documents, "Deployment", "second-deployment")["spec"]["template"]["spec"]["containers"]
    assert "--selector=tier=x,who=us" in controller["args"]
    # It removes clone tokens from objects that get the labels later.
    (apiserver,) = find(documents, "Deployment", "second-apiserver")["spec"]["template"]["spec"]["containers"]
    assert "--selector=tier=x,who=us" in apiserver["args"]


# --- Validation by the API server


def acceptable(documents):
    """Return the documents without the Prometheus operator's kinds, which the cluster may lack."""
    return [each for each in documents if not each["apiVersion"].startswith("monitoring.coreos.com/")]


@pytest.mark.parametrize(
    "values",
    [{}, EVERYTHING, PROMETHEUS, beside("here"), {**beside(who="us"), **BATCH}],
    ids=["default", "everything", "monitoring", "beside", "labels"],
)
def test_the_api_server_takes_it(render, namespace, definitions, values):
    if values == beside("here"):
        values = beside(namespace.namespace)
    documents = acceptable(render(values, release="cdi", namespace=namespace.namespace))
    places = {each["metadata"].get("namespace", namespace.namespace) for each in documents}
    assert places <= {namespace.namespace, "kube-system", "default"}
    for place in sorted(places):  # kubectl accepts one namespace for all documents
        there = [each for each in documents if each["metadata"].get("namespace", namespace.namespace) == place]
        listed = json.dumps({"apiVersion": "v1", "kind": "List", "items": there})
        namespace.within(place).run(
            "apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict", "-f-", given=listed
        )


def test_the_api_server_takes_the_example_of_a_batch(namespace, definitions):
    path = ROOT / "examples" / "batch-job.yaml"
    said = namespace.run("apply", "--server-side", "--dry-run=server", "--validate=strict", f"--filename={path}")
    assert len(said.splitlines()) == 5


@pytest.fixture(scope="module")
def definitions(cluster):
    cluster.kubectl.run("apply", "--server-side", "--force-conflicts", f"--filename={ROOT / 'crds'}")
    for path in sorted((ROOT / "crds").glob("*.yaml")):
        cluster.kubectl.run("wait", "--for=condition=Established", f"crd/{path.stem}.cdi.kubevirt.io", "--timeout=150s")


# --- Operation in the cluster


RESTRICTED = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
MADE = (
    "deployments,pods,services,serviceaccounts,secrets,configmaps,leases,roles,rolebindings,networkpolicies,"
    "poddisruptionbudgets,jobs,cronjobs,ingresses"
)
KUBERNETES_OWN = {("ServiceAccount", "default"), ("ConfigMap", "kube-root-ca.crt")}


class Release:
    """An installed chart; `system` is its own namespace, `work` one that it serves."""

    def __init__(self, cluster, helm, name, system, work):
        self.name, self.system, self.work = name, system, work
        self._cluster = cluster
        self._helm = helms.Helm(
            program=helm.program,
            home=helm.home,
            kubeconfig=system.kubeconfig,
            namespace=system.namespace,
            environment=system.environment,
        )

    def install(self, values, *more):
        return self._run("install", values, *more)

    def upgrade(self, values, *more):
        return self._run("upgrade", values, *more)

    def _run(self, verb, values, *more):
        wait = ("--wait", f"--timeout={SLOW:.0f}s")
        try:
            return self._helm.run(verb, self.name, str(CHART), *wait, *more, values=values, patience=SLOW + 60)
        except HelmError as error:
            raise AssertionError(f"{error}\n{self.pods()}") from error

    def uninstall(self):
        self._helm.run("uninstall", self.name, "--wait", f"--timeout={SLOW:.0f}s", patience=SLOW + 60)
        for each in self.system.get_all("pods"):  # which are deleted after their owners
            self.system.wait_gone("pod", each["metadata"]["name"], SLOW)

    def installed(self):
        return bool(json.loads(self._helm.run("list", "--output=json", "--all")))

    def pods(self):
        """Return state and logs of its pods, for the report of a failure."""
        said = [self.system.run("get", "pods,events")]
        for each in self.system.get_all("pods"):
            name = each["metadata"]["name"]
            said.append(f"{name}:\n" + self.system.run("logs", name, "--all-containers", "--tail=20", "--prefix"))
        return "\n".join(said)

    def log(self, deployment):
        return self.system.run("logs", f"deployment/{deployment}", "--all-containers", "--tail=-1")

    def left(self):
        """Return the objects that remain of the release, in its namespaces and cluster-wide."""
        ours = f"app.kubernetes.io/instance={self.name}"
        wide = (
            "clusterroles,clusterrolebindings,validatingwebhookconfigurations,mutatingwebhookconfigurations,apiservices"
        )
        found = named(self._cluster.kubectl.get_all(wide, ours))
        found |= named(self._cluster.kubectl.within("kube-system").get_all("rolebindings", ours))
        found |= named(self.work.get_all("roles,rolebindings"))
        return found | {
            name for name in named(self.system.get_all(MADE)) - KUBERNETES_OWN if not name[1].startswith("sh.helm.")
        }

    def may(self, account, verb, resource, *, namespace, group="", subresource="", name="*"):
        """Return whether one of its service accounts may do something.

        An empty `namespace` means all namespaces, or a cluster-scoped resource.
        """
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": f"system:serviceaccount:{self.system.namespace}:{account}",
                "groups": ["system:serviceaccounts", "system:authenticated"],
                "resourceAttributes": {
                    "verb": verb, "group": group, "resource": resource, "subresource": subresource,
                    "namespace": namespace, "name": name,
                },
            },
        }  # fmt: skip
        # A review is not stored; only the response contains the answer.
        said = self.system.run("create", "--filename=-", "--output=json", given=json.dumps(review))
        return json.loads(said)["status"]["allowed"]


@pytest.fixture(scope="module")
def image(cluster):
    return cdi_image.provide(cluster)


@pytest.fixture(scope="module")
def release(cluster, helm, definitions, image):
    """Install the chart in two namespaces of its own, beside whatever else is installed."""
    repository, _, tag = image.rpartition(":")
    with cluster.namespace("chart") as system, cluster.namespace("chart-work") as work:
        for each in (system, work):
            each.merge("namespace", each.namespace, {"metadata": {"labels": RESTRICTED}})
        made = Release(cluster, helm, "second", system, work)
        values = {"image": {"repository": repository, "tag": tag}, **beside(work.namespace)}
        try:
            made.install(values)
            made.values = values
            yield made
        finally:
            if made.installed():
                made.uninstall()


def data_volume(name, source, size="16Mi"):
    return {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "DataVolume",
        "metadata": {"name": name},
        "spec": {
            "source": source,
            "storage": {
                "storageClassName": "csi",
                "accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": size}},
            },
        },
    }


def test_its_pods_are_ready_under_the_restricted_standard(release):
    for name in ("second-deployment", "second-apiserver"):
        status = release.system.get("deployment", name)["status"]
        assert (status["readyReplicas"], status["unavailableReplicas"] if "unavailableReplicas" in status else 0) == (
            1,
            0,
        )


@pytest.fixture
def served(cluster):
    """Serve a disk image that requires a password on this machine, and yield its URL."""
    wanted = "Basic " + base64.b64encode(b"user:password").decode()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            allowed = self.headers["Authorization"] == wanted
            self.send_response(HTTPStatus.OK if allowed else HTTPStatus.UNAUTHORIZED)
            self.send_header("Content-Length", str(len(DISK) if allowed else 0))
            self.end_headers()
            if allowed:
                self.wfile.write(DISK)

        def log_message(self, *_):
            pass

    if not cluster.host_address:
        pytest.skip("CDI_TEST_HOST_ADDRESS does not say where pods reach this machine")
    with http.server.ThreadingHTTPServer((cluster.host_address, 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://{cluster.host_address}:{server.server_port}/disk.raw"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("csi", [True, False], ids=["populator", "direct"])
def test_an_import_works_with_the_rights_that_it_has(cluster, release, served, csi):
    """A missing right shows as a 403 response in the log."""
    name = f"image-{csi}".lower()
    volume = data_volume(name, {"http": {"url": served, "secretRef": "login"}})
    volume["spec"]["storage"]["storageClassName"] = next(
        (each.name for each in cluster.storage_classes() if (each.csi, each.waits) == (csi, False)), None
    )
    release.work.create(volume)
    # The Secret is created later: the import waits for it.
    release.work.wait("pvc", name, "there", lambda _: True, SLOW)
    secret = {"accessKeyId": "user", "secretKey": "password"}
    release.work.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "login"}, "stringData": secret})
    release.work.wait("datavolume", name, "imported", is_phase("Succeeded"), SLOW)
    release.work.delete("secret", "login")
    for deployment in ("second-deployment", "second-apiserver"):
        assert "orbidden" not in release.log(deployment)


def test_volumes_are_cloned_and_moved_with_the_rights_that_it_has(release):
    def clone(name, storage_class, **storage):
        made = data_volume(name, {"pvc": {"namespace": release.work.namespace, "name": "golden"}})
        made["spec"]["storage"] |= {"storageClassName": storage_class, **storage}
        return made

    release.work.create(data_volume("golden", {"blank": {}}))
    release.work.wait("datavolume", "golden", "imported", is_phase("Succeeded"), SLOW)
    # By the storage; host-assisted; host-assisted with a size that a pod has to detect first.
    clones = [clone("by-storage", "csi"), clone("copied", "local"), clone("measured", "local", resources={})]
    release.work.create(*clones)
    for each in clones:
        release.work.wait("datavolume", each["metadata"]["name"], "cloned", is_phase("Succeeded"), SLOW)
    name = f"{release.work.namespace}-moved"
    place = {"namespace": release.work.namespace, "name": "by-storage"}
    release.work.create(
        {
            "apiVersion": "cdi.kubevirt.io/v1beta1",
            "kind": "ObjectTransfer",
            "metadata": {"name": name},
            "spec": {"source": {"kind": "DataVolume", **place}, "target": {**place, "name": "moved"}},
        }
    )
    try:
        release.work.wait("objecttransfer", name, "done", is_phase("Complete"), SLOW)
        release.work.wait("datavolume", "moved", "there", is_phase("Succeeded"), SLOW)
    finally:
        release.work.delete("objecttransfer", name)
    for deployment in ("second-deployment", "second-apiserver"):
        assert "orbidden" not in release.log(deployment)


def test_a_batch_imports_with_the_rights_that_it_has(release, served):
    login = {"accessKeyId": "user", "secretKey": "password"}
    release.work.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "batch-login"}, "stringData": login})
    images = [{"name": "from-batch", "url": served, "secretRef": "batch-login"}]
    storage = {"storageClassName": "csi", "accessModes": ["ReadWriteOnce"]}
    batch = {"name": "golden", "images": images, "defaults": {"storage": storage}}
    release.upgrade({**release.values, "batch": [{**batch, "targetNamespace": release.work.namespace}]})
    (job,) = [each["metadata"]["name"] for each in release.system.get_all("jobs")]
    done = release.system.wait(
        "job", job, "at its end", lambda each: bool({"succeeded", "failed"} & set(each.get("status", {}))), SLOW
    )
    said = release.system.run("logs", f"job/{job}", "--tail=-1")
    assert done["status"].get("succeeded") == 1, said
    assert "imported" in said
    assert phase(release.work.get("datavolume", "from-batch")) == "Succeeded"


def test_what_is_wrong_is_refused_as_it_is_written(release):
    """The webhook rejects it: the schema alone cannot know that the claim exists."""
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "taken"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "16Mi"}}},
    }
    release.work.create(claim)
    with pytest.raises(KubectlError, match="already exists"):
        release.work.create(data_volume("taken", {"blank": {}}))


def test_the_controller_may_do_no_more_than_it_needs(release):
    account, here, system = "second-sa", release.work.namespace, release.system.namespace

    def may(verb, resource, namespace=here, **more):
        return release.may(account, verb, resource, namespace=namespace, **more)

    assert may("get", "secrets")
    assert may("create", "pods")
    for namespace in ("default", "kube-system", ""):
        for resource in ("secrets", "configmaps", "pods", "persistentvolumeclaims"):
            assert not may("list", resource, namespace)
        assert not may("create", "pods", namespace)
    # Copies of what the pods of polls mount are in its own namespace, and Jobs there could mount any Secret anyway.
    assert may("update", "secrets", system)
    assert may("create", "jobs", system, group="batch")
    assert not may("create", "jobs", group="batch")
    for verb in ("list", "watch", "patch", "delete"):
        assert not may(verb, "secrets")
        assert not may(verb, "secrets", system)
    for verb in ("create", "update", "patch", "delete"):
        assert not may(verb, "nodes", "")
        assert not may(verb, "serviceaccounts")
        assert not may(verb, "customresourcedefinitions", "", group="apiextensions.k8s.io")
        assert not may(verb, "cdis", "", group="cdi.kubevirt.io")
        for resource in ("roles", "rolebindings", "clusterroles", "clusterrolebindings"):
            assert not may(verb, resource, group="rbac.authorization.k8s.io")
    for subresource in ("exec", "attach", "portforward", "ephemeralcontainers", "log"):
        assert not may("create", "pods", subresource=subresource)
    assert not may("create", "serviceaccounts", subresource="token")
    assert not may("delete", "persistentvolumes", "")
    assert not may("create", "persistentvolumes", "")
    assert not may("impersonate", "users", "")
    assert not may("delete", "leases", system, group="coordination.k8s.io")


def test_the_api_server_may_do_no_more_than_it_needs(release):
    account, here, system = "second-apiserver", release.work.namespace, release.system.namespace

    def may(verb, resource, namespace=here, **more):
        return release.may(account, verb, resource, namespace=namespace, **more)

    assert may("get", "persistentvolumeclaims")
    assert may("update", "secrets", system, name="second-apiserver-signer")
    assert not may("get", "secrets", system, name="other")
    assert not may("list", "secrets", system)
    assert not may("get", "configmaps", system, name="other")
    for verb in ("create", "update", "patch", "delete"):
        assert not may(verb, "pods")
        assert not may(verb, "persistentvolumeclaims")
        assert not may(verb, "datavolumes", group="cdi.kubevirt.io")
    for verb in ("get", "list"):
        assert not may(verb, "secrets")
    for kind in ("validatingwebhookconfigurations", "mutatingwebhookconfigurations"):
        group = "admissionregistration.k8s.io"
        assert not may("patch", kind, "", group=group, name="other")
        assert not may("create", kind, "", group=group)
        assert not may("delete", kind, "", group=group)


def test_an_upgrade_leaves_certificates_and_trust_as_they_are(release):
    webhook = ("validatingwebhookconfiguration", f"{release.system.namespace}-second-api-datavolume-validate")

    def kept():
        secrets = [
            release.system.get("secret", f"second-apiserver-{each}")["data"]
            for each in ("signer", "server-cert", "webhook-path")
        ]
        client = release.system.get(*webhook)["webhooks"][0]["clientConfig"]
        return secrets, client["caBundle"], client["service"]["path"]

    before = kept()
    release.upgrade({**release.values, "controller": {"logLevel": "debug"}, "apiserver": {"replicas": 2}})
    assert kept() == before
    assert release.system.get("deployment", "second-apiserver")["status"]["readyReplicas"] == 2
    assert "second-apiserver" in {each["metadata"]["name"] for each in release.system.get_all("poddisruptionbudgets")}


def test_when_it_is_uninstalled_nothing_stays_but_volumes(release):
    release.work.create(data_volume("stays", {"blank": {}}))
    release.work.wait("datavolume", "stays", "imported", is_phase("Succeeded"), SLOW)
    assert release.left()
    release.uninstall()
    assert release.left() == set()
    assert phase(release.work.get("pvc", "stays")) == "Bound"
    # The definitions and DataVolumes stay, and the API server calls no webhook for them.
    release.work.merge("datavolume", "stays", {"metadata": {"labels": {"changed": "yes"}}})


def condition(document, kind):
    """Return the condition's status and message."""
    found = {one["type"]: one for one in document.get("status", {}).get("conditions", [])}
    return found.get(kind, {}).get("status"), found.get(kind, {}).get("message", "")


def taken(kubectl):
    """Return whether the cluster has objects of ours, except in terminating namespaces."""
    until = time.monotonic() + SLOW
    while there := json.loads(kubectl.run("get", "datavolumes,cdis", "--all-namespaces", "--output=json"))["items"]:
        going = {each["metadata"]["name"] for each in kubectl.get_all("namespaces") if is_phase("Terminating")(each)}
        if {each["metadata"].get("namespace") for each in there} - going or time.monotonic() > until:
            return True
        time.sleep(0.5)
    return False


def unless_taken(kubectl):
    """Skip a test of the cluster's only default installation if another installation is in the way."""
    if taken(kubectl):
        pytest.skip("there are DataVolumes, or a CDI, in this cluster")
    if kubectl.run("get", "apiservice", UPLOAD_API, "--ignore-not-found", "--output=name"):
        pytest.skip("another installation has the API of upload tokens in this cluster")


SCRAPE = """
import ssl, sys, urllib.error, urllib.request
request = urllib.request.Request(sys.argv[1], headers={"Authorization": "Bearer " + sys.argv[2]})
try:
    with urllib.request.urlopen(request, context=ssl._create_unverified_context()) as answer:
        print(answer.status, answer.read().decode())
except urllib.error.HTTPError as error:
    print(error.code)
"""


def scrape(system, token):
    """Return the status of a request to the metrics Service from within the cluster, and the first line of the body."""
    url = "https://cdi-prometheus-metrics:8443/metrics"
    text = system.run("exec", "deployment/cdi-apiserver", "--", "python3", "-c", SCRAPE, url, token)
    status, _, body = text.partition(" ")
    return int(status), body.partition("\n")[0]


@pytest.mark.alone
def test_with_its_default_values_it_serves_the_whole_cluster(cluster, helm, definitions, image):
    """The default installation takes over every object of ours, so the cluster must not have any."""
    unless_taken(cluster.kubectl)
    repository, _, tag = image.rpartition(":")
    values = {} if image == cdi_image.CDI_IMAGE else {"image": {"repository": repository, "tag": tag}}
    with (
        cluster.namespace("chart") as system,
        cluster.namespace("chart-work") as work,
        kept_config(cluster.kubectl),
    ):
        for each in (system, work):
            each.merge("namespace", each.namespace, {"metadata": {"labels": RESTRICTED}})
        release = Release(cluster, helm, "cdi", system, work)
        try:
            release.install(values, "--take-ownership")  # takes over the definitions that other tests have installed
            config = cluster.kubectl.get("cdi", "cdi")["spec"]["config"]
            assert config["podResourceRequirements"]["limits"]["cpu"] == "2"
            found = system.run("get", "pods", "--selector=app=containerized-data-importer", "--output=name")
            assert {name.removeprefix("pod/").rsplit("-", 2)[0] for name in found.split()} == COMPONENTS.keys()
            path = "{.spec.template.spec.containers[0].env[?(@.name=='IMPORTER_IMAGE')].value}"
            assert system.run("get", "deployment", "cdi-deployment", f"--output=jsonpath={path}") == image
            token = base64.b64decode(system.get("secret", "cdi-metrics-reader-token")["data"]["token"]).decode()
            assert scrape(system, token)[0] == HTTPStatus.OK
            assert scrape(system, "other")[0] == HTTPStatus.UNAUTHORIZED
            work.create(data_volume("empty", {"blank": {}}))
            work.wait("datavolume", "empty", "imported", is_phase("Succeeded"), SLOW)
            release.upgrade({**values, "config": {"preallocation": True}})
            cluster.kubectl.wait(
                "cdi", "cdi", "as configured", lambda each: each["spec"]["config"].get("preallocation"), SLOW
            )
            for deployment in COMPONENTS:
                assert "orbidden" not in release.log(deployment)
            cluster.kubectl.wait(
                "apiservice", UPLOAD_API, "available", lambda it: condition(it, "Available")[0] == "True", SLOW
            )
            cluster.kubectl.wait("cdi", "cdi", "well", lambda it: condition(it, "Available")[0] == "True", SLOW)
            system.run("scale", "deployment/cdi-apiserver", "--replicas=0")
            system.run("scale", "deployment/cdi-uploadproxy", "--replicas=0")
            away = tuple(f"Deployment cdi-{each} has no pod that is ready" for each in ("apiserver", "uploadproxy"))
            told = ("True", f"{'; '.join(away)}.")
            cluster.kubectl.wait("cdi", "cdi", "degraded", lambda it: condition(it, "Degraded") == told, SLOW)
            for each in ("apiserver", "uploadproxy"):
                system.run("scale", f"deployment/cdi-{each}", "--replicas=1")
            cluster.kubectl.wait(
                "cdi", "cdi", "well again", lambda it: condition(it, "Degraded") == ("False", ""), SLOW
            )
        finally:
            if release.installed():
                release.uninstall()
        assert release.left() == set()
        assert cluster.kubectl.get_all("cdis") == []
        assert cluster.kubectl.get("crd", "datavolumes.cdi.kubevirt.io")
