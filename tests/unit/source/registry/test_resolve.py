"""Tests of image resolution, with hostile documents as well."""

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdi.api.digest import Digest
from cdi.api.errors import (
    CdiError,
    ChecksumMismatch,
    DiskNotInImage,
    EncryptionRefused,
    NestedTooDeep,
    PlatformNotFound,
    SourceNotAnImage,
    SourceNotSupported,
    SourceProtocolError,
)
from cdi.source.registry.manifest import DOCKER_INDEX, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from cdi.source.registry.resolve import Document, resolve

LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


class Store:
    """Documents by digest."""

    def __init__(self):
        self.content = {}

    def add(self, document, media_type, **more):
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        self.content[digest] = body
        return {"mediaType": media_type, "digest": digest, "size": len(body), **more}

    def image(
        self,
        architecture=None,
        *,
        layers=None,
        config_architecture=None,
        variant=None,
        system="linux",
        manifest=None,
        **config,
    ):
        body = {"architecture": config_architecture or architecture, "os": "linux", **config}
        more = {}
        if architecture is not None:
            more["platform"] = {"architecture": architecture, "os": system, **({"variant": variant} if variant else {})}
        document = {
            "schemaVersion": 2,
            "config": self.add(body, "application/vnd.oci.image.config.v1+json"),
            "layers": [{"mediaType": LAYER, "digest": "sha256:" + "1" * 64, "size": 5}] if layers is None else layers,
            **(manifest or {}),
        }
        return self.add(document, OCI_MANIFEST, **more)

    def index(self, *entries, **more):
        return self.add({"schemaVersion": 2, "manifests": list(entries)}, OCI_INDEX, **more)

    def run(self, top, architecture=None, content_type=None):
        digest = Digest.parse(top["digest"])
        resolution = resolve(
            Document(body=self.content[top["digest"]], digest=digest, media_type=content_type),
            architecture=architecture,
            where="here",
        )
        asked = 0
        try:
            wanted = next(resolution)
            while True:
                asked += 1
                assert asked < 200
                wanted = resolution.send(self.content[str(wanted.descriptor.digest)])
        except StopIteration as stop:
            return stop.value


@pytest.fixture
def store():
    return Store()


class TestPlatforms:
    @pytest.mark.parametrize(
        ("offered", "wanted", "chosen"),
        [
            (["amd64/v3", "amd64", "amd64/v2"], "amd64", "amd64"),
            (["amd64/v3", "amd64/v2"], "amd64", "amd64/v2"),
            (["arm/v6", "arm/v7"], "arm", "arm/v7"),
            (["arm/v6", "arm/v7"], "arm/v6", "arm/v6"),
            (["arm64"], "arm64/v8", "arm64"),
            (["arm64/v8"], "arm64", "arm64/v8"),
            (["x86_64"], "amd64", "x86_64"),
            (["amd64", "aarch64"], "arm64", "aarch64"),
        ],
    )
    def test_the_baseline_goes_before_the_special(self, store, offered, wanted, chosen):
        entries = {}
        for name in offered:
            architecture, _, variant = name.partition("/")
            entries[name] = store.image(architecture, variant=variant, marker=name)
        found = store.run(store.index(*entries.values()), wanted)
        assert str(found.manifest_digest) == entries[chosen]["digest"]

    def test_windows_and_attestations_are_no_candidates(self, store):
        windows = store.image("amd64", system="windows")
        attached = store.image("amd64", annotations_marker=1)
        attached["annotations"] = {"vnd.docker.reference.type": "attestation-manifest"}
        right = store.image("amd64", marker=2)
        found = store.run(store.index(windows, attached, right), "amd64")
        assert str(found.manifest_digest) == right["digest"]

    def test_an_index_counts_for_more_than_a_config(self, store):
        entry = store.image("arm64", config_architecture="amd64")
        assert str(store.run(store.index(entry), "arm64").manifest_digest) == entry["digest"]

    def test_entries_that_do_not_say_are_asked_themselves(self, store):
        entries = [store.image(config_architecture=name) for name in ("amd64", "arm64")]
        assert str(store.run(store.index(*entries), "arm64").manifest_digest) == entries[1]["digest"]
        with pytest.raises(PlatformNotFound, match="it has amd64, arm64|linux/amd64, linux/arm64"):
            store.run(store.index(*entries), "s390x")

    def test_a_missing_platform_is_told_in_the_words_of_upstream(self, store):
        with pytest.raises(PlatformNotFound) as missing:
            store.run(store.index(store.image("amd64")), "absent")
        words = 'no image found in image index for architecture "absent", variant "", OS "linux"'
        assert missing.value.upstream == words
        with pytest.raises(PlatformNotFound) as other:
            store.run(store.image("amd64"), "arm64")
        assert 'manifest image architecture: "amd64" doesn\'t match requested architecture: "arm64"' in (
            other.value.upstream
        )

    @pytest.mark.parametrize("label", ["containers.bootc", "ostree.bootable"])
    def test_an_image_of_an_operating_system_for_bootc_is_refused(self, store, label):
        entry = store.image("amd64", config={"Labels": {label: "1"}})
        with pytest.raises(DiskNotInImage, match="bootc-image-builder|bootc, not a disk") as refused:
            store.run(store.index(entry), "amd64")
        assert refused.value.upstream == "bootc image detected"
        assert "bootc-image-builder" in refused.value.remedy

    def test_other_labels_do_not_matter(self, store):
        entry = store.image("amd64", config={"Labels": {"containers.bootc": "0", "a": 1}})
        assert str(store.run(store.index(entry), "amd64").manifest_digest) == entry["digest"]

    def test_an_index_within_an_index(self, store):
        right = store.image("arm64")
        found = store.run(store.index(store.index(store.image("amd64")), store.index(right)), "arm64")
        assert str(found.manifest_digest) == right["digest"]

    def test_an_empty_index_has_nothing(self, store):
        with pytest.raises(PlatformNotFound, match="none"):
            store.run(store.index())

    @pytest.mark.parametrize("architecture", ["windows/amd64", "a" * 100])
    def test_a_wish_that_cannot_be_met_is_refused(self, store, architecture):
        with pytest.raises(PlatformNotFound):
            store.run(store.image("amd64"), architecture)


class TestArtifacts:
    def test_a_config_without_a_platform_fits_all(self, store):
        config = store.add({}, "application/vnd.oci.empty.v1+json")
        entry = store.image(manifest={"config": config})
        assert store.run(entry, "arm64").layers

    def test_layers_that_a_registry_does_not_give_away_are_left_out(self, store):
        foreign = {"mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "digest": "sha256:" + "2" * 64, "size": 1, "urls": ["https://x"]}  # fmt: skip
        own = {"mediaType": LAYER, "digest": "sha256:" + "3" * 64, "size": 1, "urls": ["https://evil"]}
        assert [str(d.digest) for d in store.run(store.image("amd64", layers=[foreign, own])).layers] == [own["digest"]]

    def test_an_image_of_such_layers_alone_says_so(self, store):
        kinds = ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "application/vnd.oci.image.layer.nondistributable.v1.tar")  # fmt: skip
        layers = [{"mediaType": kind, "digest": "sha256:" + "2" * 64, "size": 1} for kind in kinds]
        with pytest.raises(DiskNotInImage, match="all 2 layers of the image are non-distributable"):
            store.run(store.image("amd64", layers=layers))
        with pytest.raises(DiskNotInImage, match="the image has no layers"):
            store.run(store.image("amd64", layers=[]))


class TestHostile:
    def test_documents_must_be_what_was_promised(self, store):
        entry = store.image("amd64")
        config = json.loads(store.content[entry["digest"]])["config"]["digest"]
        good = store.content[config]
        for bad in (good[:-1], good + b" ", b"x" * len(good)):
            store.content[config] = bad
            with pytest.raises(ChecksumMismatch):
                store.run(entry)

    def test_indexes_do_not_go_down_for_ever(self, store):
        entry = store.image("amd64")
        for _ in range(10):
            entry = store.index(entry if "platform" not in entry else {**entry, "platform": {}})
        with pytest.raises(NestedTooDeep):
            store.run(entry)

    def test_a_wide_tree_is_given_up(self, store):
        leaves = [store.image(config_architecture="s390x", marker=number) for number in range(100)]
        with pytest.raises(NestedTooDeep, match="64 documents"):
            store.run(store.index(*leaves), "amd64")

    def test_a_huge_document_is_not_asked_for(self, store):
        entry = store.image("amd64")
        with pytest.raises(SourceProtocolError, match="the limit is"):
            store.run(store.index({**entry, "size": 5 << 20}), "amd64")

    def test_schema_1_is_refused_by_name(self, store):
        with pytest.raises(SourceNotSupported, match="schema 1"):
            store.run(store.add({"schemaVersion": 1, "fsLayers": [], "history": []}, "x"))

    def test_two_kinds_in_one_are_refused(self, store):
        with pytest.raises(SourceProtocolError, match="both"):
            store.run(store.add({"manifests": [], "layers": [], "config": {}}, "x"))

    @pytest.mark.parametrize("stated", [OCI_INDEX, DOCKER_INDEX])
    def test_a_content_type_that_contradicts_is_refused(self, store, stated):
        with pytest.raises(SourceProtocolError, match="does not match its media type"):
            store.run(store.image("amd64"), content_type=stated)
        with pytest.raises(SourceProtocolError, match="does not match its media type"):
            store.run(store.image("amd64", manifest={"mediaType": stated}))

    @pytest.mark.parametrize(
        "stated", [OCI_MANIFEST, DOCKER_MANIFEST, "application/json", None, "text/plain; charset=utf-8"]
    )
    def test_one_that_does_not_is_not(self, store, stated):
        assert store.run(store.image("amd64"), content_type=stated).layers

    def test_encrypted_layers_are_refused(self, store):
        layer = {"mediaType": LAYER + "+encrypted", "digest": "sha256:" + "1" * 64, "size": 5}
        with pytest.raises(EncryptionRefused):
            store.run(store.image("amd64", layers=[layer]))

    def test_no_layers_is_no_disk(self, store):
        with pytest.raises(DiskNotInImage):
            store.run(store.image("amd64", layers=[]))

    def test_a_web_page_is_told_as_such(self, store):
        with pytest.raises(SourceNotAnImage):
            store.run(store.add(b"<html>log in</html>", "x"))

    @pytest.mark.parametrize(
        "change",
        [
            {"size": -1}, {"size": True}, {"size": "5"}, {"size": 1 << 60}, {"size": None}, {"digest": "sha256:abc"},
            {"digest": None}, {"digest": "md5:" + "a" * 32}, {"digest": "../../etc/passwd"}, {"mediaType": 5}, {"mediaType": "x" * 1000},
        ],
    )  # fmt: skip
    def test_descriptors_must_be_whole(self, store, change):
        layer = {"mediaType": LAYER, "digest": "sha256:" + "1" * 64, "size": 5, **change}
        with pytest.raises(SourceProtocolError):
            store.run(store.image("amd64", layers=[layer]))

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"null",
            b"[]",
            b"{}",
            b"[" * 100_000,
            b'{"manifests": [], "x": %b%b}' % (b"[" * 500, b"]" * 500),
            b"\xff",
            b'{"manifests": 5}',
            b'{"layers": [5], "config": {}}',
            b'{"config": 5}',
            b'{"manifests": [{}]}',
        ],
    )
    def test_other_json_is_refused(self, store, body):
        with pytest.raises(SourceProtocolError):
            store.run(store.add(body, "x"))

    def test_too_many_layers_are_refused(self, store):
        layers = [{"mediaType": LAYER, "digest": "sha256:" + "1" * 64, "size": 5}] * 1001
        with pytest.raises(NestedTooDeep):
            store.run(store.image("amd64", layers=layers))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["manifests", "layers", "config", "digest", "size", "platform", "mediaType", "annotations", "architecture"]), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(JSON)
def test_any_json_is_read_or_refused(document):
    store = Store()
    try:
        store.run(store.add(document, "x"))
    except (CdiError, KeyError):  # KeyError: the store has no such document
        pass
