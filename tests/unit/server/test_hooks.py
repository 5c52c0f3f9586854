"""Tests of the webhook configurations: their rules, and their failure policies."""

import re

import pytest

from cdi.server.hooks import HOOKS, TIMEOUT, Installation, webhook_configurations

TOKEN = "object.metadata.annotations['cdi.kubevirt.io/storage.clone.token']"


def made(**options):
    installation = Installation(namespace="cdi", **options)
    return {each["metadata"]["name"]: each for each in webhook_configurations(installation)}


def only(configuration):
    (webhook,) = configuration["webhooks"]
    return webhook


def test_the_names_are_those_that_are_looked_for():
    assert {
        "cdi-api-datavolume-validate",
        "cdi-api-datavolume-mutate",
        "cdi-api-pvc-mutate",
        "cdi-api-dataimportcron-validate",
        "cdi-api-populator-validate",
        "cdi-api-validate",
    } <= made().keys()
    assert len(made()) == len(HOOKS)


def test_no_claim_waits_for_us():
    webhook = only(made()["cdi-api-pvc-mutate"])
    assert webhook["failurePolicy"] == "Ignore"
    assert webhook["objectSelector"] == {"matchLabels": {"cdi.kubevirt.io/applyStorageProfile": "true"}}
    assert webhook["rules"][0]["operations"] == ["CREATE"]


def test_a_rollback_waits_for_no_webhook():
    webhook = only(made()["cdi-api-dataimportcron-settings-validate"])
    assert webhook["failurePolicy"] == "Ignore"
    assert webhook["rules"][0]["operations"] == ["UPDATE"]
    (condition,) = webhook["matchConditions"]
    for prefix in ("cdi.kubevirt.io/golden.", "cdi.kubevirt.io/policy."):
        assert f"name.startsWith('{prefix}')" in condition["expression"]


def test_what_is_not_ours_is_never_asked_about_but_claims():
    for name, configuration in made().items():
        groups = only(configuration)["rules"][0]["apiGroups"]
        assert groups == ([""] if name == "cdi-api-pvc-mutate" else ["cdi.kubevirt.io"])


def test_finalizers_and_status_never_wait_for_us():
    for configuration in made().values():
        webhook = only(configuration)
        (rule,) = webhook["rules"]
        assert not any("/" in resource for resource in rule["resources"])
        if "UPDATE" in rule["operations"]:
            changed = {
                "datavolume-mutate.cdi.kubevirt.io": f"{TOKEN} == oldO{TOKEN[1:]}",
                "dataimportcron-settings-validate.cdi.kubevirt.io": "oldObject.metadata.annotations[name] == object.",
            }
            expected = changed.get(webhook["name"], "object.spec != oldObject.spec")
            assert expected in webhook["matchConditions"][0]["expression"]


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.name)
def test_a_match_condition_does_not_fail_for_an_object_without_a_spec(hook):
    # CEL fails for a missing key, except for the last one that `has` tests.
    condition = hook.matters(labelled=True)
    for read in re.finditer(r"\b(object|oldObject)\.spec\.", condition):
        assert f"has({read[1]}.spec) && " in condition[: read.start()]


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.name)
def test_every_webhook_is_quick_has_no_side_effects_and_says_why_it_fails_so(hook):
    configuration = webhook_configurations(Installation(namespace="cdi"))[HOOKS.index(hook)]
    webhook = only(configuration)
    assert webhook["timeoutSeconds"] == TIMEOUT <= 10
    assert webhook["sideEffects"] == "None"
    assert configuration["metadata"]["annotations"]["cdi.kubevirt.io/failurePolicyReason"] == hook.reason
    assert webhook["clientConfig"]["service"] == {
        "namespace": "cdi", "name": "cdi-api", "port": 443,
    }  # fmt: skip


def test_beside_another_cdi_it_is_asked_about_its_own_only():
    for name, configuration in made(
        prefix="mine", namespaces=("a", "b"), object_labels={"team": "x"}, service="mine-api"
    ).items():
        webhook = only(configuration)
        assert name.startswith("mine-")
        assert webhook["objectSelector"]["matchLabels"]["team"] == "x"
        assert webhook["rules"][0]["scope"] == "Namespaced"
        (wanted,) = webhook["namespaceSelector"]["matchExpressions"]
        assert wanted == {"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["a", "b"]}
    both = only(made(object_labels={"team": "x"})["cdi-api-pvc-mutate"])["objectSelector"]["matchLabels"]
    assert both == {"cdi.kubevirt.io/applyStorageProfile": "true", "team": "x"}


def test_an_import_under_way_waits_for_nobody():
    webhook = only(made()["cdi-api-populator-validate"])
    assert webhook["failurePolicy"] == "Ignore"


def test_a_server_outside_of_the_cluster_is_reached_by_its_url():
    webhook = only(made(url="https://host:8443", authorities="PEM")["cdi-api-datavolume-validate"])
    assert webhook["clientConfig"] == {"url": "https://host:8443", "caBundle": "UEVN"}


def test_labels_that_come_later_matter_where_there_are_any_to_have():
    """A label added later may bring in a DataVolume whose token was not removed at creation."""
    labels = "object.metadata.labels != oldObject.metadata.labels"
    for options, asked in (({}, False), ({"namespaces": ("a",)}, False), ({"object_labels": {"who": "us"}}, True)):
        expressions = {
            name: each["webhooks"][0]["matchConditions"][0]["expression"]
            for name, each in made(**options).items()
            if "matchConditions" in each["webhooks"][0]
        }
        assert {name for name, text in expressions.items() if labels in text} == (
            {"cdi-api-datavolume-mutate"} if asked else set()
        )
