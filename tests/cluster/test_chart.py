"""The Helm chart: what it renders, what the API server says to it, and what it does in the cluster."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.cluster import helm as helms
from tests.cluster.helm import CHART, HelmError
from tests.cluster.layout import ClusterError, Layout

ROOT = Path(__file__).parents[2]
SLOW = 180.0  # seconds for what takes some ten on an idle machine
CLUSTER_WIDE = {"CustomResourceDefinition", "CDI"}
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
    """Helm without a cluster."""
    try:
        program = helms.build(Layout.default())
    except ClusterError as error:
        pytest.fail(str(error))
    return helms.Helm(program=program, home=tmp_path_factory.mktemp("helm"), namespace="system")


@pytest.fixture(scope="module")
def render(helm):
    """The chart's documents for some values."""

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
    """Every pod's spec, with the name of what makes it."""
    for each in documents:
        spec = each.get("spec", {})
        if each["kind"] == "CronJob":
            spec = spec["jobTemplate"]["spec"]
        if each["kind"] in ("Deployment", "Job", "CronJob"):
            yield each["metadata"]["name"], spec["template"]["spec"]


def containers(pod):
    return [*pod.get("initContainers", []), *pod["containers"]]


def configurations(namespace="system", *more):
    """The webhooks as the API server's program prints them."""
    command = [sys.executable, "-m", "cdi.cli.main", "apiserver", "--print-webhooks", f"--namespace={namespace}", *more]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    return list(yaml.load_all(printed, yaml.CSafeLoader))


# --- what it renders


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
        ("ServiceAccount", "cdi-sa"),
        ("ServiceAccount", "cdi-apiserver"),
        ("Service", "cdi-api"),
        ("Service", "cdi-prometheus-metrics"),
        ("NetworkPolicy", "cdi-controller"),
        ("NetworkPolicy", "cdi-apiserver"),
        *((kind, f"cdi-{part}") for part in ("controller", "apiserver") for kind in RIGHTS),
        ("Secret", "cdi-apiserver-signer"),
        ("Secret", "cdi-apiserver-server-cert"),
        ("ConfigMap", "cdi-apiserver-signer-bundle"),
        ("Lease", "cdi-controller"),
        *((each["kind"], each["metadata"]["name"]) for each in configurations()),
    }


RIGHTS = ("ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")


@pytest.mark.parametrize("values", [{}, EVERYTHING, beside("a")], ids=["default", "everything", "beside"])
def test_every_pod_keeps_to_the_restricted_standard_and_the_one_image(render, values):
    image = f"registry:5000/a/cdi@{DIGEST}" if "image" in values else "images.cdi.test/cdi:1"
    found = list(pods(render(values)))
    assert len(found) == 2 + len(values.get("batch", []))
    for _, pod in found:
        assert pod["securityContext"] == {
            "runAsNonRoot": True,
            "runAsUser": 107,
            "runAsGroup": 107,
            "fsGroup": 107,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        assert {kind for volume in pod["volumes"] for kind in volume if kind != "name"} <= {"emptyDir", "configMap"}
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


def test_workers_get_the_image_that_the_controller_has(render):
    controller = find(render(EVERYTHING), "Deployment", "cdi-deployment")["spec"]["template"]["spec"]
    (container,) = controller["containers"]
    assert f"--image={container['image']}" in container["args"]
    assert f"--pull-policy={container['imagePullPolicy']}" in container["args"]
    assert "--workers=8" in container["args"]
    assert controller["imagePullSecrets"] == [{"name": "pull"}]


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
    for name, part, deployment in (("cdi-controller", "controller", "cdi-deployment"), ("cdi-apiserver",) * 3):
        part = part.removeprefix("cdi-")
        budget = find(documents, "PodDisruptionBudget", name)
        labels = find(documents, "Deployment", deployment)["spec"]["template"]["metadata"]["labels"]
        assert budget["spec"]["selector"]["matchLabels"].items() <= labels.items()
        assert labels["app.kubernetes.io/component"] == part


def test_selectors_are_those_of_the_pods_and_never_change(render):
    """A Deployment's selector cannot be changed by an upgrade; other labels may."""
    for values in ({}, EVERYTHING):
        for name, part in (("cdi-deployment", "controller"), ("cdi-apiserver", "apiserver")):
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
        component = {"cdi-deployment": "controller", "cdi-apiserver": "apiserver"}[name]
        assert spread["labelSelector"]["matchLabels"]["app.kubernetes.io/component"] == component


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


def test_webhooks_can_be_left_out(render):
    documents = render({"webhooks": {"create": False}})
    assert not [each for each in documents if "Webhook" in each["kind"]]
    rules = find(documents, "ClusterRole", "cdi-apiserver")["rules"]
    assert "patch" not in {verb for rule in rules for verb in rule["verbs"]}


# --- beside another CDI


@pytest.mark.parametrize("values", [beside("a", "b"), beside(who="us")], ids=["namespaces", "selector"])
def test_beside_another_it_shares_no_name_with_it(render, values):
    other = placed(render())
    documents = render(values, release="second", namespace="second")
    assert placed(documents) & other == set()
    assert CLUSTER_WIDE & {each["kind"] for each in documents} == set()


def test_beside_another_it_has_rights_where_it_serves_only(render):
    documents = render(beside("a", "b"), release="second", namespace="second")
    wide = find(documents, "ClusterRole", "second-second-controller")["rules"]
    assert {resource for rule in wide for resource in rule["resources"]} == {
        "persistentvolumes",
        "nodes",
        "storageclasses",
        "volumesnapshotclasses",
        "csidrivers",
        "cdis",
        "cdiconfigs",
        "storageprofiles",
    }
    roles = [each for each in documents if each["kind"] == "Role"]
    assert {each["metadata"]["namespace"] for each in roles} == {"a", "b", "second"}
    (controller,) = find(documents, "Deployment", "second-deployment")["spec"]["template"]["spec"]["containers"]
    assert "--watch-namespaces=a,b" in controller["args"]


def test_beside_another_it_serves_what_has_the_labels(render):
    documents = render(beside(who="us", tier="x"), release="second", namespace="second")
    (controller,) = find(documents, "Deployment", "second-deployment")["spec"]["template"]["spec"]["containers"]
    assert "--selector=tier=x,who=us" in controller["args"]


# --- what the API server says to it


def acceptable(documents):
    """Without the kinds of the Prometheus operator, which the cluster need not have."""
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
    listed = json.dumps({"apiVersion": "v1", "kind": "List", "items": documents})
    namespace.run(
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
        cluster.kubectl.run("wait", "--for=condition=Established", f"crd/{path.stem}.cdi.kubevirt.io")
