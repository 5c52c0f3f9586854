import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdi.api import names

label = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=63)
subdomains = st.lists(label, min_size=1, max_size=8).map(".".join).map(lambda text: text[:253].rstrip("."))


def test_short_names_are_joined():
    assert names.importer_pod("fedora") == "importer-fedora"
    assert names.importer_pod(names.prime_claim("42-a")) == "importer-prime-42-a"
    assert names.upload_pod("fedora") == "cdi-upload-fedora"
    assert names.scratch_claim("fedora") == "fedora-scratch"
    assert names.clone_source_pod("42") == "42-source-pod"
    assert names.import_source("42") == "volume-import-source-42"
    assert names.cron_import("fedora", "sha256:0123456789abcdef") == "fedora-0123456789ab"


def test_long_names_are_shortened_as_openshift_does():
    assert names.joined("importer", "c" * 244) == "importer-" + "c" * 244
    assert names.joined("b" * 250, "scratch") == f"{'b' * 236}-{names._hash('b' * 250)}-scratch"
    assert names.joined("importer", "c" * 253) == f"importer-{names._hash('importer-' + 'c' * 253)}"


def test_the_hash_is_fnv_1a():
    # Published test vectors of FNV-1a.
    assert names._hash("foobar") == "bf9cf968"
    assert names._hash("") == "811c9dc5"


@given(subdomains)
def test_every_name_made_from_a_valid_name_is_valid_and_short_enough(name):
    for made in (names.importer_pod(name), names.upload_pod(name), names.scratch_claim(name)):
        assert names.is_dns_subdomain(made), made
    assert names.is_dns_label(names.upload_service(name))


@given(subdomains, subdomains)
def test_different_claims_have_different_pods(one, other):
    if one != other:
        assert names.importer_pod(one) != names.importer_pod(other)
        assert names.scratch_claim(one) != names.scratch_claim(other)


def test_a_cut_before_a_dot_still_gives_a_valid_name():
    name = "a" * 235 + "." + "b" * 17
    assert names.is_dns_subdomain(names.scratch_claim(name))


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("kubevirt.io/x", True),
        ("instancetype.kubevirt.io/default-preference", True),
        ("cdi.kubevirt.io", False),
        ("notkubevirt.io/x", False),
        ("kubevirt.io.example/x", False),
        ("app", False),
    ],
)
def test_labels_of_kubevirt_propagate(key, expected):
    assert names.propagates(key) is expected


def test_all_annotations_differ():
    found = [value for name, value in vars(names).items() if name.startswith("ANN_")]
    assert len(found) == len(set(found)) > 80


def test_an_import_is_named_after_the_beginning_of_its_digest():
    assert names.digest_problem("uid:fd83ea4c-7ef2-4a60-ac5c-4dd1e1e9f4ee") == ""
    assert names.cron_import("fedora", f"sha256:{'0123456789ab' * 5}0123") == "fedora-0123456789ab"
    assert names.cron_import("fedora", "uid:fd83ea4c-7ef2-4a60-ac5c-4dd1e1e9f4ee") == "fedora-fd83ea4c-7ef"


@pytest.mark.parametrize(
    ("digest", "message"),
    [
        ("sha234:012345678901", "Digest has no supported prefix"),
        ("0123456789ab", "Digest has no supported prefix"),
        ("", "Digest has no supported prefix"),
        ("sha256:01234567890", "Digest is too short"),
        ("uid:fd83ea4c", "Digest is too short"),
        ("sha256:0123456789AB", "is not sha256: and lower case hexadecimal digits"),
        ("sha256:" + "0" * 65, "is not sha256: and lower case hexadecimal digits"),
        ("sha256:../../../etc/x", "is not sha256: and lower case hexadecimal digits"),
        ("uid:fd83ea4c-7ef2\n", "is not uid: and lower case"),
    ],
)
def test_other_digests_are_refused(digest, message):
    with pytest.raises(ValueError, match=".") as refused:
        names.cron_import("fedora", digest)
    assert message in str(refused.value)


def test_a_clone_takes_over_the_default_instance_type_unless_it_has_its_own():
    preference, kind = names.LABEL_DEFAULT_PREFERENCE, names.LABEL_DEFAULT_INSTANCETYPE_KIND
    source = {preference: "fedora", kind: "x", names.LABEL_DATA_IMPORT_CRON: "cron", "x.kubevirt.io/os": "fedora"}
    assert names.labels_for_clone(source, {"other": "label"}) == {preference: "fedora", kind: "x"}
    assert names.labels_for_clone(source, {names.LABEL_DEFAULT_INSTANCETYPE: "own"}) == {}


@pytest.mark.parametrize("label", [names.LABEL_DATA_IMPORT_CRON, names.LABEL_DATA_IMPORT_CRON_CLEANUP])
def test_labels_by_which_golden_images_are_deleted_are_not_passed_on(label):
    assert not names.propagates(label)
