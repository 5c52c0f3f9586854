"""Tests of container images that must be signed, with signatures by the real cosign and hostile ones by hand."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import subprocess
import tarfile
import urllib.request

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cdi.api.errors import ImageUnsigned, SignatureInvalid
from cdi.api.job import FileTargetSpec, Job, Policy, RegistrySourceSpec, Tls
from cdi.explain.examine import examine
from cdi.explain.findings import Ask
from cdi.source.base import read_all
from cdi.source.registry.open import open_registry
from cdi.transfer.control import TransferControl
from cdi.transfer.run import transfer
from cdi.verify.cosign import CosignVerifier
from cdi.verify.public_keys import read_keys
from tests.faults.server import Fault, FaultServer
from tests.integration.fixtures_registry import OciLayout, tar_of

DISK = bytes(range(256)) * 400
SIMPLE_SIGNING = "application/vnd.dev.cosign.simplesigning.v1+json"
STORAGE = ("tag", "referrers", "bundle")
numbers = itertools.count()


def layout_of(directory, disk=DISK, *architectures):
    """Return a layout with an image ``t``, or an index of one image for each architecture, and their digests."""
    layout = OciLayout(directory / f"layout-{next(numbers)}")
    layer = layout.layer({"disk/": b"", "disk/disk.img": disk}, "none")
    if not architectures:
        return layout, {"amd64": layout.image([layer], tag="t")["digest"]}
    images = {name: layout.image([layer], architecture=name) for name in architectures}
    layout.index(list(images.values()), tag="t")
    return layout, {name: entry["digest"] for name, entry in images.items()}


@pytest.fixture
def push(registries, tmp_path):
    """Push an image to a new repository and return its URL without a tag, its digest and those of its platforms."""

    def push(disk=DISK, *architectures, address=None, repository=None):
        layout, platforms = layout_of(tmp_path, disk, *architectures)
        name = repository or f"signed/n{next(numbers)}"
        if address is None:
            digest = registries.push(layout, "t", f"{name}:t")
            return registries.open.url(name), digest, platforms
        digest_file = tmp_path / "digest"
        subprocess.run(
            ["skopeo", "--insecure-policy", "copy", "--quiet", "--all", "--preserve-digests",
             "--dest-tls-verify=false", "--digestfile", digest_file, f"oci:{layout.path}:t",
             f"docker://{address}/{name}:t"],
            check=True, timeout=60,
        )  # fmt: skip
        return f"docker://{address}/{name}", digest_file.read_text().strip(), platforms

    return push


def opened(url, *keys, tls=None, **more):
    verifier = CosignVerifier(read_keys(map(str, keys)))
    image = open_registry(RegistrySourceSpec(url=url, tls=tls or Tls(insecure=True), **more), 10, None, verifier)
    image.close()
    return image, verifier


class TestRealSignatures:
    @pytest.mark.parametrize("storage", STORAGE)
    def test_each_way_to_store_a_signature_is_found_without_the_referrers_api(self, push, cosign, storage):
        url, digest, _ = push()
        cosign.sign(url, digest, storage=storage)
        image, verifier = opened(f"{url}:t", cosign.key("release"))
        assert (str(image.digest), verifier.verified_by) == (digest, "cosign (release.pub)")

    @pytest.mark.parametrize("storage", STORAGE)
    def test_each_way_to_store_a_signature_is_found_with_the_referrers_api(
        self, push, cosign, referrers_registry, storage
    ):
        url, digest, _ = push(address=referrers_registry)
        with pytest.raises(ImageUnsigned):
            opened(f"{url}:t", cosign.key("release"))
        cosign.sign(url, digest, storage=storage)
        image, _ = opened(f"{url}:t", cosign.key("release"))
        assert str(image.digest) == digest

    @pytest.mark.parametrize("storage", ["tag", "bundle"])
    @pytest.mark.parametrize("kind", ["p256", "p384", "ed25519", "rsa"])
    def test_each_kind_of_key(self, push, cosign, kind, storage):
        url, digest, _ = push()
        key = cosign.key(f"key-{kind}", kind)
        cosign.sign(url, digest, f"key-{kind}", storage)
        assert opened(f"{url}@{digest}", key)[1].signer.name == f"key-{kind}.pub"

    @pytest.mark.parametrize("storage", STORAGE)
    def test_a_signature_of_the_index_or_of_the_platform_suffices(self, push, cosign, storage):
        for signed in ("index", "arm64"):
            url, digest, platforms = push(DISK, "amd64", "arm64")
            cosign.sign(url, digest if signed == "index" else platforms["arm64"], storage=storage)
            image, _ = opened(f"{url}:t", cosign.key("release"), architecture="arm64")
            assert str(image.image.manifest_digest) == platforms["arm64"]
            assert str(image.digest) == digest

    def test_a_signature_of_another_platform_is_none(self, push, cosign):
        url, _, platforms = push(DISK, "amd64", "arm64")
        cosign.sign(url, platforms["arm64"])
        with pytest.raises(ImageUnsigned):
            opened(f"{url}:t", cosign.key("release"), architecture="amd64")

    @pytest.mark.parametrize("storage", STORAGE)
    def test_a_signature_by_another_key_is_rejected(self, push, cosign, storage):
        url, digest, _ = push()
        cosign.sign(url, digest, "stranger", storage)
        with pytest.raises(SignatureInvalid, match=r"no signature by a trusted key \(release.pub\)"):
            opened(f"{url}:t", cosign.key("release"))
        cosign.sign(url, digest, "release", storage)
        opened(f"{url}:t", cosign.key("release"))
        opened(f"{url}:t", cosign.key("another"), cosign.key("stranger"))

    def test_an_unsigned_image_is_imported_once_it_is_signed(self, push, cosign):
        url, digest, _ = push()
        with pytest.raises(ImageUnsigned) as raised:
            opened(f"{url}:t", cosign.key("release"))
        assert digest in raised.value.message
        cosign.sign(url, digest)
        opened(f"{url}:t", cosign.key("release"))

    def test_a_copied_signature_of_another_image_is_rejected(self, push, cosign, registries):
        url, digest, _ = push()
        cosign.sign(url, digest)
        copied = signature_manifest(url, digest)
        other, other_digest, _ = push(DISK[::-1], repository=url.split("/", 3)[3])
        assert other == url
        put_manifest(url, f"{other_digest.replace(':', '-')}.sig", copied)
        with pytest.raises(SignatureInvalid, match=f"is of another image, {digest}"):
            opened(f"{url}:t", cosign.key("release"))

    def test_a_truncated_payload_is_rejected(self, push, cosign, registries):
        url, digest, _ = push()
        cosign.sign(url, digest)
        payload = json.loads(signature_manifest(url, digest))["layers"][0]["digest"].removeprefix("sha256:")
        stored = next((registries.directory / "store").rglob(f"blobs/sha256/*/{payload}/data"))
        stored.write_bytes(stored.read_bytes()[:-20])
        with pytest.raises(SignatureInvalid, match="size mismatch"):
            opened(f"{url}:t", cosign.key("release"))

    @pytest.mark.parametrize("storage", STORAGE)
    def test_what_was_verified_is_imported_even_if_the_tag_moves(self, push, cosign, storage):
        url, digest, _ = push(DISK, "amd64", "arm64")
        cosign.sign(url, digest, storage=storage)
        verifier = CosignVerifier(read_keys([str(cosign.key("release"))]))
        spec = RegistrySourceSpec(url=f"{url}:t", tls=Tls(insecure=True), architecture="amd64")
        with open_registry(spec, 10, None, verifier) as image:
            _, moved, _ = push(DISK[::-1], "amd64", "arm64", repository=url.split("/", 3)[3])
            assert moved != digest
            content = read_all(image.layers[0].source, 1 << 20)
        assert content == tar_of({"disk/": b"", "disk/disk.img": DISK})


def signature_manifest(url, digest):
    return fetch(url, f"manifests/{digest.replace(':', '-')}.sig")


def fetch(url, path):
    with urllib.request.urlopen(_request(url, path), timeout=20) as response:
        return response.read()


def put_manifest(url, tag, body):
    request = _request(url, f"manifests/{tag}", method="PUT", data=body)
    request.add_header("Content-Type", "application/vnd.oci.image.manifest.v1+json")
    urllib.request.urlopen(request, timeout=20).close()


def _request(url, path, **more):
    host, _, repository = url.removeprefix("docker://").partition("/")
    request = urllib.request.Request(f"http://{host}/v2/{repository}/{path}", **more)
    types = ("manifest", "index")
    request.add_header("Accept", ", ".join(f"application/vnd.oci.image.{kind}.v1+json" for kind in types))
    return request


class TestArchives:
    def test_an_archive_by_cosign_save_carries_its_signatures(self, push, cosign, tmp_path):
        url, digest, _ = push()
        cosign.sign(url, digest)
        cosign.save(url, digest, tmp_path / "saved")
        path = archived(tmp_path / "saved", tmp_path / "saved.tar")
        image, _ = opened(f"oci-archive:{path}", cosign.key("release"))
        assert str(image.digest) == digest
        with pytest.raises(SignatureInvalid):
            opened(f"oci-archive:{path}", cosign.key("stranger"))

    def test_an_archive_with_the_tags_of_the_registry_carries_its_signatures(self, push, cosign, tmp_path):
        url, digest, _ = push()
        cosign.sign(url, digest)
        for name in ("t", f"{digest.replace(':', '-')}.sig"):
            subprocess.run(
                ["skopeo", "--insecure-policy", "copy", "--quiet", "--preserve-digests", "--src-tls-verify=false",
                 f"{url}:{name}", f"oci:{tmp_path}/copy:{name}"],
                check=True, timeout=60,
            )  # fmt: skip
        path = archived(tmp_path / "copy", tmp_path / "copy.tar")
        image, _ = opened(f"oci-archive:{path}", cosign.key("release"))
        assert str(image.digest) == digest

    @pytest.mark.parametrize("storage", ["referrers", "bundle"])
    @pytest.mark.parametrize("tagged", [True, False])
    def test_an_archive_that_lists_referrers_carries_its_signatures(
        self, registries, cosign, tmp_path, storage, tagged
    ):
        layout, platforms = layout_of(tmp_path)
        digest = platforms["amd64"]
        name = f"signed/n{next(numbers)}"
        registries.push(layout, "t", f"{name}:t")
        url, tag = registries.open.url(name), digest.replace(":", "-")
        cosign.sign(url, digest, storage=storage)
        lists = fetch(url, f"manifests/{tag}")
        entry = json.loads(lists)["manifests"][0]
        manifest = fetch(url, f"manifests/{entry['digest']}")
        layout.blob(manifest, "")
        for descriptor in json.loads(manifest)["layers"]:
            layout.blob(fetch(url, f"blobs/{descriptor['digest']}"), "")
        if tagged:
            layout.tag(layout.blob(lists, "application/vnd.oci.image.index.v1+json"), tag)
        else:
            layout.entries.append(entry | {"artifactType": json.loads(manifest)["artifactType"]})
            layout.tag(layout.entries.pop(0), "t")
        path = layout.archive(tmp_path / "image.tar")
        image, _ = opened(f"oci-archive:{path}", cosign.key("release"))
        assert str(image.digest) == digest

    def test_an_archive_without_signatures_is_rejected(self, cosign, tmp_path):
        layout, _ = layout_of(tmp_path)
        path = layout.archive(tmp_path / "a.tar")
        with pytest.raises(ImageUnsigned):
            opened(f"oci-archive:{path}:t", cosign.key("release"))


def archived(directory, path):
    with tarfile.open(path, "w") as tar:
        for file in sorted(directory.rglob("*")):
            tar.add(file, str(file.relative_to(directory)), recursive=False)
    return path


class TestImports:
    def job(self, url, tmp_path, *keys, retries=3):
        return Job(
            id="x",
            source=RegistrySourceSpec(url=url, tls=Tls(insecure=True), architecture="amd64"),
            target=FileTargetSpec(path=str(tmp_path / "volume/disk.img")),
            policy=Policy(retries=retries, stall_timeout=5, cosign_keys=tuple(map(str, keys))),
        )

    def test_nothing_is_written_before_the_signature_is_verified(self, push, cosign, tmp_path):
        url, digest, _ = push()
        (tmp_path / "volume").mkdir()
        job = self.job(f"{url}:t", tmp_path, cosign.key("release"))
        outcome = transfer(job, TransferControl(job))
        assert outcome.failure.code == "ImageUnsigned"
        assert (outcome.written, outcome.verified_by, list((tmp_path / "volume").iterdir())) == (0, (), [])
        cosign.sign(url, digest, storage="bundle")
        outcome = transfer(job, TransferControl(job))
        assert outcome.failure is None, outcome.failure
        assert outcome.verified_by[:1] == ("cosign (release.pub)",)
        assert (tmp_path / "volume/disk.img").read_bytes().rstrip(b"\0") == DISK.rstrip(b"\0")

    def test_an_inspection_predicts_the_result(self, push, cosign, tmp_path):
        url, digest, _ = push()
        job = self.job(f"{url}:t", tmp_path, cosign.key("release"))
        assert isinstance(examine(job, TransferControl(job), Ask(expected=True)).refusal, ImageUnsigned)
        cosign.sign(url, digest)
        found = examine(job, TransferControl(job), Ask(expected=True))
        assert found.refusal is None
        assert "cosign (release.pub)" in found.result.verified_by

    def test_a_file_that_is_no_key_is_named(self, push, tmp_path):
        url, _, _ = push()
        (tmp_path / "key").write_text("hello")
        job = self.job(f"{url}:t", tmp_path, tmp_path / "key")
        outcome = transfer(job, TransferControl(job))
        assert outcome.failure.code == "VerificationKeyInvalid"
        assert str(tmp_path / "key") in outcome.failure.message

    def test_an_outage_of_the_registry_while_signatures_are_read_is_retried(self, tmp_path):
        with FaultServer() as server:
            registry = HostileRegistry(server, tmp_path)
            server.file(registry.tag).faults = [Fault(status=503, retry_after="0")]
            server.file(registry.payload).faults = [Fault(drop_after=10)]
            (tmp_path / "volume").mkdir()
            job = self.job(registry.url, tmp_path, registry.key)
            outcome = transfer(job, TransferControl(job))
            assert outcome.failure is None, outcome.failure
            assert "cosign (key.pub)" in outcome.verified_by


class HostileRegistry:
    """A signed image on a fault server, whose documents a test may replace."""

    def __init__(self, server, directory):
        self.server = server
        self.private = ec.generate_private_key(ec.SECP256R1())
        self.key = directory / "key.pub"
        self.key.write_bytes(
            self.private.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )
        self.url = f"docker://{server.origin.partition('://')[2]}/a/b:t"
        server.put("/v2/", b"{}")
        config = self.blob(b'{"architecture": "amd64", "os": "linux"}', "application/vnd.oci.image.config.v1+json")
        layer = self.blob(tar_of({"disk/": b"", "disk/d.img": DISK}), "application/vnd.oci.image.layer.v1.tar")
        self.config = config
        body = json.dumps({"schemaVersion": 2, "config": config, "layers": [layer]}).encode()
        server.put("/v2/a/b/manifests/t", body)
        self.digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        self.tag = f"/v2/a/b/manifests/{self.digest.replace(':', '-')}.sig"
        self.referrers = f"/v2/a/b/referrers/{self.digest}"
        self.good = self.signature()
        self.payload = f"/v2/a/b/blobs/{self.good['digest']}"
        server.put(self.tag, self.manifest(self.good))

    def blob(self, content, media_type, **more):
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        self.server.put(f"/v2/a/b/blobs/{digest}", content)
        return {"mediaType": media_type, "digest": digest, "size": len(content), **more}

    def signature(self, *, signature=None, padding=""):
        critical = {"image": {"docker-manifest-digest": self.digest}, "type": "cosign container image signature"}
        payload = json.dumps({"critical": critical, "optional": padding}).encode()
        made = self.private.sign(payload, ec.ECDSA(hashes.SHA256()))
        note = base64.b64encode(made).decode() if signature is None else signature
        return self.blob(payload, SIMPLE_SIGNING, annotations={"dev.cosignproject.cosign/signature": note})

    def manifest(self, *layers):
        return json.dumps({"schemaVersion": 2, "config": self.config, "layers": layers}).encode()

    def refer(self, *bodies, artifact_type=""):
        """Serve manifests by digest and return the list of referrers."""
        entries = []
        for body in bodies:
            digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
            self.server.put(f"/v2/a/b/manifests/{digest}", body)
            entries.append({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest,
                            "size": len(body), "artifactType": artifact_type})  # fmt: skip
        return json.dumps({"schemaVersion": 2, "manifests": entries}).encode()

    def open(self):
        return opened(self.url, self.key)

    def rejection(self):
        with pytest.raises(SignatureInvalid) as raised:
            self.open()
        return raised.value.what


@pytest.fixture
def hostile(tmp_path):
    with FaultServer() as server:
        yield HostileRegistry(server, tmp_path)


class TestHostileRegistries:
    def test_a_sound_one_is_accepted(self, hostile):
        hostile.open()

    def test_a_huge_manifest_is_not_read_to_its_end(self, hostile):
        hostile.server.put(hostile.tag, b" " * (5 << 20))
        assert "exceeds 4194304 bytes" in hostile.rejection()

    def test_a_huge_list_of_referrers_is_not_read_to_its_end(self, hostile):
        hostile.server.put(hostile.tag, hostile.manifest())
        hostile.server.put(hostile.referrers, b" " * (5 << 20))
        assert "exceeds 4194304 bytes" in hostile.rejection()

    def test_a_huge_payload_is_not_read(self, hostile):
        large = hostile.signature(padding="x" * 70_000)
        hostile.server.put(hostile.tag, hostile.manifest(large))
        assert "is too large" in hostile.rejection()
        assert not hostile.server.asked(f"/v2/a/b/blobs/{large['digest']}")

    def test_a_payload_larger_than_its_descriptor_is_not_read_to_its_end(self, hostile):
        hostile.server.file(hostile.payload).data += b" " * (1 << 20)
        assert "mismatch" in hostile.rejection()

    def test_at_most_64_signatures_are_read_the_newest_first(self, hostile):
        bad = [hostile.signature(signature="AAAA", padding=str(number)) for number in range(200)]
        hostile.server.put(hostile.tag, hostile.manifest(hostile.good, *bad))
        assert "more than 64 signatures" in hostile.rejection() or "trusted key" in hostile.rejection()
        read = {r.path for r in hostile.server.requests if any(b["digest"] in r.path for b in bad)}
        assert len(read) == 64
        hostile.server.put(hostile.tag, hostile.manifest(*bad, hostile.good))
        hostile.open()

    def test_at_most_64_referrers_are_read(self, hostile):
        hostile.server.put(hostile.tag, hostile.manifest())
        others = [hostile.manifest(hostile.config | {"size": n + 1}) for n in range(150)]
        hostile.server.put(hostile.referrers, hostile.refer(*others))
        assert "more than 64 signatures" in hostile.rejection()
        assert len([r for r in hostile.server.requests if "/manifests/sha256:" in r.path]) == 64

    @pytest.mark.parametrize(
        "body", [b"", b"{}", b"[" * 100_000, b"<html>", b'{"schemaVersion": 2, "layers": 3, "config": {}}']
    )
    def test_a_malformed_document_beside_a_good_signature_does_no_harm(self, hostile, body):
        hostile.server.put(hostile.referrers, hostile.refer(body, hostile.manifest(hostile.good)))
        hostile.server.put(hostile.tag, body)
        hostile.open()
        hostile.server.put(hostile.referrers, body)
        hostile.rejection()

    def test_a_listed_signature_that_is_missing_is_rejected(self, hostile):
        gone = hostile.signature(padding="gone")
        hostile.server.put(hostile.tag, hostile.manifest(gone | {"digest": "sha256:" + "0" * 64}))
        assert "404" in hostile.rejection()

    def test_all_pages_of_referrers_are_read_but_only_of_this_repository(self, hostile):
        hostile.server.put(hostile.tag, hostile.manifest())
        second = hostile.refer(hostile.manifest(hostile.good), artifact_type="application/vnd.oci.empty.v1+json")
        first = hostile.refer(hostile.manifest(), artifact_type="application/spdx+json")

        def pages(link):
            def answer(request):
                if "last=" in request.target:
                    return Fault(data=second)
                return Fault(data=first, headers=(("Link", f'<{link}>; rel="next"'),))

            hostile.server.put(hostile.referrers, first, always=answer)

        pages(f"{hostile.referrers}?last=1")
        hostile.open()
        for link in (f"/v2/a/other/referrers/{hostile.digest}?last=1", "http://example.invalid/?last=1", "http://[bad"):
            pages(link)
            with pytest.raises((ImageUnsigned, SignatureInvalid)):
                hostile.open()

    def test_an_endless_list_of_referrers_ends(self, hostile):
        hostile.server.put(hostile.tag, hostile.manifest())
        empty = hostile.refer()
        link = (("Link", f'<{hostile.referrers}?last=x>; rel="next"'),)
        hostile.server.put(hostile.referrers, empty, always=Fault(data=empty, headers=link))
        with pytest.raises(ImageUnsigned):
            hostile.open()
        assert len(hostile.server.asked(hostile.referrers)) == 16

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 501])
    def test_a_registry_without_the_referrers_api_is_asked_for_the_tag(self, hostile, status):
        hostile.server.put(hostile.tag, hostile.manifest())
        hostile.server.put(hostile.referrers, b"", always=Fault(status=status))
        fallback = f"/v2/a/b/manifests/{hostile.digest.replace(':', '-')}"
        hostile.server.put(fallback, hostile.refer(hostile.manifest(hostile.good)))
        hostile.open()
