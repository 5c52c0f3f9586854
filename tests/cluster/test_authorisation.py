"""Authorization of clones across namespaces, with real users and service accounts of the real API server.

There are three namespaces: that of the sources, one where DataVolumes pass the webhooks, and one where the webhooks are
not called, as during their outage. There, only the controller's own check of a token protects the sources.
"""

import base64
import contextlib
import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import yaml

from cdi.controller.clone_lister import claims_of
from cdi.kube.jwt import Operation, SigningKey
from cdi.reconcile.clone.plan_annotation import ANN_TARGET, LABEL_TEMPORARY
from cdi.reconcile.clone.types import CloneAuthorization
from tests.cluster import helm as helms
from tests.cluster.accounts import Asker, account, bind, person
from tests.cluster.cdi import controller
from tests.cluster.cluster import Cluster
from tests.cluster.kubectl import Kubectl, KubectlError
from tests.cluster.layout import Layout
from tests.cluster.objects import claim, snapshot
from tests.cluster.test_apiserver import Server, free_port, trusted, until, webhooks
from tests.cluster.volumes import conditions, data_volume, wait_phase
from tests.unit.server.reviews import BY_NAME, body

SHORT, LASTING = "cdi.kubevirt.io/storage.clone.token", "cdi.kubevirt.io/storage.extended.clone.token"
TIMEOUT = 300.0  # seconds, for what takes about ten on an idle machine
FEDORA, THEN = "fedora", "fedora-then"
SOURCE = {"apiGroups": ["cdi.kubevirt.io"], "resources": ["datavolumes/source"], "verbs": ["create"]}
PODS = {"apiGroups": [""], "resources": ["pods"], "verbs": ["create"]}
CLAIMS = {"apiGroups": [""], "resources": ["persistentvolumeclaims"], "verbs": ["create"]}
PVCS = {"apiGroups": [""], "resources": ["pvcs"], "verbs": ["create"]}
"""What KubeVirt's CDI asks for instead; no API has such a resource."""
OTHERWISE = {
    "apiGroups": ["", "cdi.kubevirt.io"],
    "resources": ["pods", "persistentvolumeclaims", "datavolumes", "datavolumes/source"],
    "verbs": ["get", "list", "watch", "update", "patch", "delete"],
}
RIGHTS = {
    "nothing": [],
    "one": [SOURCE | {"resourceNames": [FEDORA]}],
    "another": [SOURCE | {"resourceNames": ["debian"]}],
    "pods": [PODS],
    "claims": [CLAIMS],
    "both": [PODS, CLAIMS],
    "pods-and-pvcs": [PODS, PVCS],
    "otherwise": [OTHERWISE],
}
"""Roles in the sources' namespace, besides those of the chart, Kubernetes' own `edit`, and "elsewhere"."""
OF_THE_CHART = {"sourcer": "clone-sourcer", "editor": "edit", "viewer": "view"}
OF_CLAIMS = {"claim", "reference", "chain", "own reference"}
OF_SNAPSHOTS = {"snapshot", "reference to a snapshot"}
ALLOWED = {
    "sourcer": OF_CLAIMS | OF_SNAPSHOTS,
    "editor": OF_CLAIMS | OF_SNAPSHOTS,
    "edit": OF_CLAIMS | OF_SNAPSHOTS,
    "both": OF_CLAIMS | OF_SNAPSHOTS,
    "pods-and-pvcs": OF_CLAIMS | OF_SNAPSHOTS,
    "one": OF_CLAIMS,
    "pods": OF_CLAIMS,
}
"""Sources that each role may clone; other roles may clone none."""


@dataclass(kw_only=True)
class Place:
    """The three namespaces and the subjects."""

    cluster: Cluster
    gold: Kubectl
    work: Kubectl
    apart: Kubectl
    """Namespace without webhooks."""
    server: Server
    directory: Path
    askers: dict[tuple[str, str], Asker] = field(default_factory=dict)

    @property
    def label(self):
        return {"cdi-test": self.work.namespace}

    def source(self, kind):
        """Return the part of a DataVolume's spec that names the source."""
        gold = self.gold.namespace
        return {
            "claim": {"source": {"pvc": {"namespace": gold, "name": FEDORA}}},
            "snapshot": {"source": {"snapshot": {"namespace": gold, "name": THEN}}},
            "reference": {"sourceRef": {"kind": "DataSource", "namespace": gold, "name": "to-claim"}},
            "chain": {"sourceRef": {"kind": "DataSource", "namespace": gold, "name": "to-reference"}},
            "own reference": {"sourceRef": {"kind": "DataSource", "name": "to-elsewhere"}},
            "reference to a snapshot": {"sourceRef": {"kind": "DataSource", "namespace": gold, "name": "to-snapshot"}},
        }[kind]

    def clone(self, name, source, *, labelled=True, annotations=None):
        """Build a DataVolume that clones `source`."""
        made = data_volume(name, {}, "csi", annotations=annotations, labels=self.label if labelled else {})
        del made["spec"]["source"]
        made["spec"] |= self.source(source) if isinstance(source, str) else source
        return made

    def asker(self, kind, right):
        """Return a subject that may create DataVolumes where they pass the webhooks, and has one right more."""
        if (kind, right) not in self.askers:
            name = f"{kind}-{right}"
            if kind == "user":
                made = person(self.work, self.directory, f"{self.work.namespace}:{name}")
            else:
                made = account(self.work, self.directory, name)
            bind(self.work, "Role", "makes-datavolumes", made.subject)
            if right == "edit":
                bind(self.gold, "ClusterRole", right, made.subject)
            elif right == "elsewhere":
                bind(self.work, "ClusterRole", self.cluster_role("sourcer"), made.subject)
            elif right in OF_THE_CHART:
                bind(self.gold, "ClusterRole", self.cluster_role(right), made.subject)
            elif RIGHTS[right]:
                bind(self.gold, "Role", right, made.subject)
            self.askers[kind, right] = made
        return self.askers[kind, right]

    def cluster_role(self, right):
        """Return the name of one of the chart's ClusterRoles, made unique in this cluster."""
        return f"{self.work.namespace}:{OF_THE_CHART[right]}"

    def refusal(self, asker, document):
        """Return why the API server rejects the document, or "" if it would accept it."""
        try:
            asker.kubectl.run("create", "--dry-run=server", "--filename=-", given=json.dumps(document))
        except KubectlError as error:
            return str(error)
        return ""

    def grant(self, name, /, *, within=None, **changes):
        """Build the grant for one DataVolume, with `changes`."""
        leave = CloneAuthorization(
            kind="PersistentVolumeClaim",
            namespace=self.gold.namespace,
            name=FEDORA,
            target_namespace=(within or self.apart).namespace,
            target_name=name,
        )
        return replace(leave, **changes)

    def key(self):
        """Return the key that signs tokens."""
        kept = self.work.wait("secret", "cdi-api-signing-key", "made", lambda it: "id_rsa" in it.get("data", {}))
        return SigningKey.load(base64.b64decode(kept["data"]["id_rsa"]))


def roles_of_the_chart(home):
    """Return the rules of the chart's ClusterRoles by name."""
    helm = helms.Helm(program=helms.build(Layout.default()), home=home, namespace="cdi")
    rendered = yaml.safe_load_all(helm.template("cdi", None, "--show-only=templates/userroles.yaml"))
    return {each["metadata"]["name"]: each["rules"] for each in rendered if each["kind"] == "ClusterRole"}


def role(name, rules, kind="Role"):
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": kind,
        "metadata": {"name": name},
        "rules": rules,
    }


def data_source(name, **source):
    return {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "DataSource",
        "metadata": {"name": name},
        "spec": {"source": source},
    }


def prepare(place):
    """Create the sources and the roles."""
    gold = place.gold.namespace
    place.gold.create(
        data_volume(FEDORA, {"blank": {}}, "csi", labels=place.label),
        data_source("to-claim", pvc={"namespace": gold, "name": FEDORA}),
        data_source("to-reference", dataSource={"namespace": gold, "name": "to-claim"}),
        data_source("to-snapshot", snapshot={"namespace": gold, "name": THEN}),
        *(role(name, rules) for name, rules in RIGHTS.items() if rules),
    )
    rule = {"apiGroups": ["cdi.kubevirt.io"], "resources": ["datavolumes"], "verbs": ["create", "get", "patch"]}
    place.work.create(
        data_source("to-elsewhere", pvc={"namespace": gold, "name": FEDORA}), role("makes-datavolumes", [rule])
    )
    wait_phase(place.gold, FEDORA, "Succeeded")
    place.gold.create(snapshot(THEN, FEDORA))


@pytest.fixture(scope="module")
def place(cluster, tmp_path_factory):
    if not cluster.host_address:
        pytest.skip("CDI_TEST_HOST_ADDRESS does not say where the API server reaches this machine")
    directory, port = tmp_path_factory.mktemp("authorisation"), free_port()
    with contextlib.ExitStack() as stack:
        gold, work, apart = (
            stack.enter_context(cluster.namespace(f"leave-{each}")) for each in ("gold", "work", "apart")
        )
        selector = f"--selector=cdi-test={work.namespace}"
        served = f"--watch-namespaces={work.namespace},{gold.namespace},{apart.namespace}"
        stack.enter_context(controller(cluster, work, served, selector))
        documents = stack.enter_context(webhooks(work, cluster.host_address, port))
        server = Server(cluster, work, port, directory / "apiserver.log", selector)
        stack.callback(server.process.wait)
        stack.callback(server.process.kill)
        made = Place(cluster=cluster, gold=gold, work=work, apart=apart, server=server, directory=directory)
        rules = roles_of_the_chart(directory)
        for right, name in OF_THE_CHART.items():
            work.create(role(made.cluster_role(right), rules[f"cdi.kubevirt.io:{name}"], "ClusterRole"))
            stack.callback(work.delete, "clusterrole", made.cluster_role(right))
        prepare(made)
        until("it is ready", server.ready)
        until("it is trusted", lambda: trusted(work, documents, server.bundle))
        nobody = made.asker("user", "nothing")
        until("it is asked", lambda: "insufficient" in made.refusal(nobody, made.clone("a", "claim")))
        yield made


# --- Permissions


@pytest.mark.parametrize("right", [*RIGHTS, *OF_THE_CHART, "edit", "elsewhere"])
@pytest.mark.parametrize("kind", ["user", "account"])
def test_each_right_allows_what_it_is_for_and_nothing_else(place, kind, right):
    asker = place.asker(kind, right)
    said = {source: place.refusal(asker, place.clone("a", source)) for source in OF_CLAIMS | OF_SNAPSHOTS}
    assert {source for source, text in said.items() if not text} == ALLOWED.get(right, set()), said
    words = f"User {asker.name} has insufficient permissions in clone source namespace {place.gold.namespace}"
    for text in filter(None, said.values()):
        assert "Error from server (Forbidden)" in text
        assert words in text


def test_a_right_of_a_group_is_one_of_its_members(place):
    group = f"{place.work.namespace}:owners"
    role_name = place.cluster_role("sourcer")
    bind(
        place.gold, "ClusterRole", role_name, {"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": group}
    )
    member = person(place.work, place.directory, f"{place.work.namespace}:member", "others", group)
    # The group of all service accounts of the sources' namespace.
    accounts = f"system:serviceaccounts:{place.gold.namespace}"
    bind(
        place.gold,
        "ClusterRole",
        role_name,
        {"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": accounts},
    )
    robot = account(place.gold, place.directory, "robot")
    for each in (member, robot):
        bind(place.work, "Role", "makes-datavolumes", each.subject)
        asking = replace(each, kubectl=each.within(place.work.namespace))
        assert place.refusal(asking, place.clone("a", "claim")) == ""


def test_within_a_namespace_no_right_is_needed(place):
    asker = place.asker("user", "nothing")
    own = {"source": {"pvc": {"namespace": place.work.namespace, "name": "anything"}}}
    assert place.refusal(asker, place.clone("a", own)) == ""


def test_a_dry_run_is_given_no_token(place):
    asker = place.asker("user", "sourcer")
    given = json.dumps(place.clone("dry", "claim", annotations={SHORT: "brought along"}))
    made = json.loads(asker.kubectl.run("create", "--dry-run=server", "--filename=-", "--output=json", given=given))
    assert SHORT not in made["metadata"].get("annotations", {})


def test_whoever_may_gets_a_volume(place):
    wanted = {
        "by-user": ("user", "sourcer", "claim"),
        "by-account": ("account", "pods", "chain"),
        "of-snapshot": ("user", "both", "snapshot"),
        "by-reference": ("account", "sourcer", "reference to a snapshot"),
        "": ("account", "one", "own reference"),
    }
    made = {}
    for name, (kind, right, source) in wanted.items():
        document = place.clone(name, source, annotations={SHORT: "brought along"})
        if not name:
            document["metadata"] |= {"name": None, "generateName": "made-up-"}
        (created,) = place.asker(kind, right).kubectl.create(document)
        made[created["metadata"]["name"]] = (created, source)
    key = place.key()
    for name, (created, source) in made.items():
        claims = key.verify(created["metadata"]["annotations"][SHORT], Operation.CLONE, time.time())
        kind, source_name = ("VolumeSnapshot", THEN) if "snapshot" in source else ("PersistentVolumeClaim", FEDORA)
        expected = place.grant(name, within=place.work, kind=kind, name=source_name)
        assert claims == claims_of(expected)
        wait_phase(place.work, name, "Succeeded")
        uid = created["metadata"]["uid"]
        lasting = place.work.get("pvc", name)["metadata"]["annotations"][LASTING]
        assert key.verify(lasting, Operation.CLONE, time.time()) == claims_of(replace(expected, target_uid=uid))


# --- Tokens


def unsigned(token):
    """Return the token without a signature and with the algorithm ``none`` (RFC 7518, section 3.6)."""
    header = base64.urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').rstrip(b"=").decode()
    return f"{header}.{token.split('.')[1]}."


def altered(token, **changes):
    """Return the token with changed claims and the old signature."""
    header, payload, signature = token.split(".")
    said = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))) | changes
    return f"{header}.{base64.urlsafe_b64encode(json.dumps(said).encode()).rstrip(b'=').decode()}.{signature}"


def fails(kubectl, name):
    """Wait for the DataVolume to fail as unauthorized, and return the message."""
    found = wait_phase(kubectl, name, "Failed", "Succeeded", patience=TIMEOUT)
    ready = conditions(found)["Detail"]
    assert ready["reason"] == "CloneUnauthorised", ready
    return ready["message"]


def test_the_controller_takes_no_token_but_the_right_one(place):
    """The namespace has no webhooks, so nothing removes the token that a DataVolume brings along."""
    key, foreign, now = place.key(), SigningKey.generate(), time.time()

    def good(name, /, **changes):
        return key.sign(claims_of(place.grant(name, **changes)), now)

    shown = {
        "none": {},
        "noise": {SHORT: "a.b.c"},
        "foreign": {SHORT: foreign.sign(claims_of(place.grant("foreign")), now)},
        "expired": {SHORT: key.sign(claims_of(place.grant("expired")), now - 600)},
        "early": {SHORT: key.sign(claims_of(place.grant("early")), now + 3600)},
        "upload": {SHORT: key.sign(replace(claims_of(place.grant("upload")), operation=Operation.UPLOAD), now)},
        "unsigned": {SHORT: unsigned(good("unsigned"))},
        "altered": {
            SHORT: altered(good("good"), params={"targetNamespace": place.apart.namespace, "targetName": "altered"})
        },
        "prolonged": {SHORT: altered(key.sign(claims_of(place.grant("prolonged")), now - 600), exp=now + 3600)},
        "anothers": {SHORT: good("good")},
        "elsewhere": {SHORT: good("elsewhere", within=place.work)},
        "of-another": {SHORT: good("of-another", name="debian")},
        "of-a-snapshot": {SHORT: good("of-a-snapshot", kind="VolumeSnapshot")},
        "lasts-for-another": {LASTING: good("lasts-for-another", target_uid="00000000-0000-0000-0000-000000000000")},
        "lasts-for-all": {LASTING: good("lasts-for-all")},
    }
    place.apart.create(
        place.clone("good", "claim", annotations={SHORT: good("good")}),
        *(place.clone(name, "claim", annotations=annotations) for name, annotations in shown.items()),
    )
    for name in shown:
        assert f"to be cloned into {place.apart.namespace}/{name}" in fails(place.apart, name)
        assert {"CloneFailed"} <= {one["reason"] for one in place.apart.events("DataVolume", name)}
    wait_phase(place.apart, "good", "Succeeded")
    assert {each["metadata"]["name"] for each in place.apart.get_all("pvc")} == {"good"}
    # A DataVolume of the same name must not use the token that was kept for its predecessor.
    kept = place.apart.get("pvc", "good")["metadata"]["annotations"][LASTING]
    place.apart.delete("datavolume", "good")
    place.apart.wait_gone("pvc", "good")
    place.apart.create(place.clone("good", "claim", annotations={LASTING: kept}))
    fails(place.apart, "good")


def stolen(place, name):
    """Return the token that a thief gets by calling the webhook directly in the name of an authorized user."""
    user = place.asker("user", "sourcer").name
    document = place.clone(name, "claim")
    document["metadata"]["namespace"] = place.work.namespace
    hook = BY_NAME["datavolume-mutate"]
    status, text = place.server.fetch(
        f"/{place.server.words()[0]}{hook.path}", body(document, userInfo={"username": user})
    )
    assert status == 200
    patch = json.loads(base64.b64decode(json.loads(text)["response"]["patch"]))
    token = next(each["value"][SHORT] for each in patch if each["path"] == "/metadata/annotations")
    granted = place.key().verify(token, Operation.CLONE, time.time())
    assert granted == claims_of(place.grant(name, within=place.work))
    return {SHORT: token}


def test_a_stolen_token_is_no_right(place):
    thief = place.asker("user", "nothing")
    assert "insufficient permissions" in place.refusal(thief, place.clone("a", "claim", annotations=stolen(place, "a")))


def test_a_stolen_token_is_taken_away_before_its_source_is_known(place):
    thief = place.asker("user", "nothing")
    later = {"sourceRef": {"kind": "DataSource", "name": "later"}}
    (made,) = thief.kubectl.create(place.clone("b", later, annotations=stolen(place, "b")))
    assert SHORT not in made["metadata"].get("annotations", {})
    place.work.create(data_source("later", pvc={"namespace": place.gold.namespace, "name": FEDORA}))
    assert "no authorized user has allowed" in fails(place.work, "b")


def test_a_stolen_token_cannot_be_added(place):
    thief = place.asker("user", "nothing")
    thief.kubectl.create(place.clone("c", {"sourceRef": {"kind": "DataSource", "name": "never"}}))
    patch = {"metadata": {"annotations": stolen(place, "c")}}
    with pytest.raises(KubectlError, match="cannot be added or changed"):
        thief.kubectl.merge("datavolume", "c", patch)
    with pytest.raises(KubectlError, match="cannot be added or changed"):
        # Not even an authorized user can: the token was issued for the original request.
        place.work.merge("datavolume", "c", patch)
    thief.kubectl.merge("datavolume", "c", {"metadata": {"annotations": {"a": "b"}, "labels": {"c": "d"}}})


def test_a_stolen_token_is_taken_from_what_becomes_ours(place):
    """The DataVolume is created without the labels that select it for the webhook, and labelled later."""
    thief = place.asker("user", "nothing")
    (made,) = thief.kubectl.create(place.clone("d", "claim", labelled=False, annotations=stolen(place, "d")))
    assert SHORT in made["metadata"]["annotations"]
    thief.kubectl.merge("datavolume", "d", {"metadata": {"labels": place.label}})
    assert SHORT not in place.work.get("datavolume", "d")["metadata"].get("annotations", {})
    assert "no authorized user has allowed" in fails(place.work, "d")


def test_a_stolen_token_on_a_claim_is_none(place):
    """Claims pass no webhook that checks permissions."""
    by_hand = claim("e", "csi", size="24Mi")
    by_hand["metadata"] |= {
        "labels": place.label,
        "annotations": {"k8s.io/CloneRequest": f"{place.gold.namespace}/{FEDORA}", **stolen(place, "e")},
    }
    place.work.create(by_hand)
    until("it is refused", lambda: "CloneUnauthorised" in reasons(place.work, "e"), TIMEOUT)
    # Its class provisions an empty volume; nothing that would fill it was started.
    annotations = place.work.get("pvc", "e")["metadata"]["annotations"]
    assert not {LASTING, "cdi.kubevirt.io/cloneType"} & annotations.keys()
    assert annotations["cdi.kubevirt.io/clonePhase"] == "Error"
    temporary = f"{LABEL_TEMPORARY}=true"
    made = [one["metadata"] for one in place.gold.get_all("pods,pvc,volumesnapshots", temporary)]
    assert not [one for one in made if one["annotations"].get(ANN_TARGET) == f"{place.work.namespace}/e"]


def reasons(kubectl, name):
    """Return the reasons and messages of a claim's Events."""
    return " ".join(f"{one['reason']} {one['message']}" for one in kubectl.events("PersistentVolumeClaim", name))


def test_a_volumeclonesource_leads_nowhere_else(place):
    """A VolumeCloneSource refers to a volume of its own namespace, which has none of that name."""
    made = claim("f", "csi", source={"apiGroup": "cdi.kubevirt.io", "kind": "VolumeCloneSource", "name": "of-fedora"})
    made["metadata"]["labels"] = place.label
    place.work.create(
        {
            "apiVersion": "cdi.kubevirt.io/v1beta1",
            "kind": "VolumeCloneSource",
            "metadata": {"name": "of-fedora", "labels": place.label},
            "spec": {"source": {"kind": "PersistentVolumeClaim", "name": FEDORA}},
        },
        made,
    )
    until("it waits", lambda: "CloneWithoutSource" in reasons(place.work, "f"), TIMEOUT)
    assert f"{place.work.namespace}/{FEDORA}" in reasons(place.work, "f")


def test_a_datasource_that_moves_takes_no_leave_along(place):
    """The user may clone the first referent of the DataSource; permission for the second was never checked."""
    gold = place.gold.namespace
    place.work.create(data_source("moves", pvc={"namespace": gold, "name": "not-yet"}))
    rules = [SOURCE | {"resourceNames": ["not-yet"]}]
    place.gold.create(role("not-yet", rules))
    asker = place.asker("account", "nothing")
    bind(place.gold, "Role", "not-yet", asker.subject)
    asker.kubectl.create(place.clone("g", {"sourceRef": {"kind": "DataSource", "name": "moves"}}))
    place.work.merge("datasource", "moves", {"spec": {"source": {"pvc": {"name": FEDORA}}}})
    assert f"{gold}/not-yet was authorized" in fails(place.work, "g")
