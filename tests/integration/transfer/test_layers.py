"""Tests of container images of several layers: import and inspection find the disk that a container of them sees."""

import dataclasses
import hashlib
import json
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from cdi.api.job import FileTargetSpec, Job, Policy, RegistrySourceSpec, Tls
from cdi.explain.examine import examine
from cdi.explain.findings import Ask
from cdi.transfer.control import TransferControl
from cdi.transfer.run import transfer
from tests.faults.server import Fault
from tests.integration.fixtures_registry import OciLayout
from tests.layers import END, directory, file, hardlink, layer, symlink

OLD, NEW = (random.Random(n).randbytes(300_000) + bytes(7200) for n in (1, 2))
LOWER = layer(directory("disk/"), file("disk/disk.img", OLD))
EMPTY = {"two blocks": END, "a record": bytes(10240), "nothing": b""}
ASKS = {
    "inspect": Ask(allocation=True),
    "explain": Ask(expected=True, allocation=True),
    "batch size": Ask(whole=True),
    "digest": Ask(digest=True, whole=True),
}


class Importing:
    """The import of one image, and its inspection in every way."""

    def __init__(self, url: str, directory: Path) -> None:
        self.disk = directory / "disk.img"
        self.job = Job(
            id="x",
            source=RegistrySourceSpec(url=url, architecture="amd64", tls=Tls(insecure=True)),
            target=FileTargetSpec(path=str(self.disk)),
            policy=Policy(retries=3, stall_timeout=10),
        )

    def run(self):
        return transfer(self.job, TransferControl(self.job))

    def look(self, ask: Ask):
        return examine(self.job, TransferControl(self.job), ask)

    def gives(self, content: bytes, number: int) -> None:
        """Check that the disk has this content, and that every inspection finds it in this layer."""
        outcome = self.run()
        assert outcome.failure is None, outcome.failure
        assert self.disk.read_bytes() == content
        assert "registry digest" in outcome.verified_by
        for name, ask in ASKS.items():
            found = self.look(ask)
            assert (found.refusal, found.layer, found.image.format) == (None, number, "raw"), name
            assert ("disk", "the only file below /disk") in [(check.name, check.detail) for check in found.checks]

    def refuses(self, code: str, *says: str) -> None:
        """Check that there is no disk, and that every inspection gives the same reason."""
        failure = self.run().failure
        assert failure is not None and failure.code == code, failure
        assert all(word in failure.message for word in says), failure.message
        assert os.listdir(self.disk.parent) == []
        for name, ask in ASKS.items():
            found = self.look(ask)
            assert found.refusal is not None and found.refusal.message == failure.message, name


@pytest.fixture
def image(tmp_path, oci_layout):
    """Return a function that makes an OCI archive of these layers, the lowest first."""

    def make(*layers: bytes, compression: str = "gzip") -> Importing:
        oci_layout.image([oci_layout.layer(content, compression) for content in layers], tag="t")
        path = oci_layout.archive(tmp_path / "image.tar")
        (tmp_path / "volume").mkdir()
        return Importing(f"oci-archive:{path}:t", tmp_path / "volume")

    return make


class TestEmptyLayers:
    @pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
    @pytest.mark.parametrize("empty", EMPTY.values(), ids=EMPTY)
    def test_above_the_disk(self, image, empty, compression):
        image(LOWER, empty, compression=compression).gives(OLD, 1)

    def test_below_and_between(self, image):
        image(END, LOWER, END, layer(file("etc/x")), bytes(10240)).gives(OLD, 2)

    def test_nothing_else(self, image):
        image(END, bytes(10240)).refuses("DiskNotInImage", "none of the 2 layers has a file below /disk")

    def test_in_a_registry(self, registries, oci_layout, tmp_path):
        oci_layout.image([oci_layout.layer(content) for content in (LOWER, bytes(10240), END)], tag="t")
        registries.push(oci_layout, "t", "layers/empty:t")
        (tmp_path / "volume").mkdir()
        Importing(registries.open.url("layers/empty:t"), tmp_path / "volume").gives(OLD, 1)


class TestNoLayers:
    @pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
    def test_a_disk_that_was_pushed_as_a_layer(self, image, tmp_path, compression):
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", tmp_path / "d.qcow2", "8M"], check=True)
        content = (tmp_path / "d.qcow2").read_bytes()
        image(LOWER, content, compression=compression).refuses("FormatUnsupported", "a qcow2 image, not a tar archive")

    def test_a_raw_disk_that_begins_with_zeros(self, image):
        image(LOWER, bytes(4096) + OLD).refuses("FormatUnsupported", "not a tar archive")


class TestOverlays:
    def test_a_disk_that_was_deleted(self, image):
        image(LOWER, layer(file("disk/.wh.disk.img", b""))).refuses("DiskNotInImage", "layer 2 deletes")

    def test_a_disk_that_was_replaced(self, image):
        image(LOWER, layer(directory("disk/"), file("disk/disk.img", NEW))).gives(NEW, 2)

    def test_one_name_twice_in_a_layer(self, image):
        image(LOWER, layer(file("disk/disk.img", OLD), file("disk/disk.img", NEW))).gives(NEW, 2)

    def test_two_disks_of_two_layers(self, image):
        lower, upper = layer(file("disk/a.img", OLD)), layer(file("disk/b.img", NEW))
        image(lower, upper).refuses("DiskNotInImage", "'/disk/a.img' (layer 1), '/disk/b.img' (layer 2)")

    def test_a_link_in_the_disks_place(self, image):
        image(LOWER, layer(symlink("disk/disk.img", "/x"))).refuses("DiskNotInImage", "is a symbolic link to '/x'")

    def test_a_link_in_the_directorys_place(self, image):
        image(LOWER, layer(symlink("disk", "/x"))).refuses("DiskNotInImage", "/disk is a symbolic link to '/x'")

    def test_a_hard_link_to_a_file_elsewhere(self, image):
        image(END, layer(file("images/x", NEW), hardlink("disk/x", "images/x"))).gives(NEW, 2)

    def test_a_hard_link_to_another_layers_file(self, image):
        upper = layer(hardlink("disk/x", "images/x"))
        image(layer(file("images/x", NEW)), upper).refuses("DiskNotInImage", "is a hard link to 'images/x' in layer 2")

    def test_what_was_written_of_another_file_is_gone(self, image):
        long = NEW * 3
        image(LOWER, layer(file("disk/x", long), directory("disk/x"))).gives(OLD, 1)

    def test_a_disk_of_the_wrong_kind_leaves_nothing(self, image):
        image(layer(file("disk/x", NEW), symlink("disk/x", "y"))).refuses("DiskNotInImage", "is a symbolic link to 'y'")


class TestRealBuilders:
    @pytest.fixture
    def build(self, tmp_path):
        if not (shutil.which("buildah") and shutil.which("busybox")):
            pytest.skip("buildah and busybox are not installed")

        def build(*steps: str) -> Importing:
            context = tmp_path / "context"
            context.mkdir()
            (context / "old.img").write_bytes(OLD)
            (context / "new.img").write_bytes(NEW)
            shutil.copy(shutil.which("busybox"), context / "busybox")
            (context / "Dockerfile").write_text("\n".join(("FROM scratch", *steps)) + "\n")
            buildah = ["buildah", f"--root={tmp_path}/root", f"--runroot={tmp_path}/run", "--storage-driver=vfs"]
            for command in (
                ["bud", "--layers", "--isolation=chroot", "--quiet", "--tag=t", context],
                ["push", "--quiet", "t", f"oci:{tmp_path}/built:t"],
            ):
                subprocess.run([*buildah, *command], check=True, capture_output=True, timeout=100)
            path = OciLayoutOf(tmp_path / "built").archive(tmp_path / "image.tar")
            (tmp_path / "volume").mkdir()
            return Importing(f"oci-archive:{path}", tmp_path / "volume")

        return build

    def test_a_step_that_changes_nothing(self, build):
        importing = build("ADD old.img /disk/", "LABEL a=b", "COPY old.img /disk/old.img")
        assert importing.look(Ask()).container.layers == 2
        importing.gives(OLD, 1)

    def test_a_directory_that_was_deleted_and_made_again(self, build):
        build(
            "COPY busybox /bin/busybox",
            "COPY old.img /disk/old.img",
            'RUN ["/bin/busybox", "rm", "-r", "/disk"]',
            "COPY new.img /disk/new.img",
        ).gives(NEW, 4)

    def test_a_hard_link(self, build):
        build(
            "COPY busybox /bin/busybox",
            "COPY new.img /new.img",
            'RUN ["/bin/busybox", "sh", "-c", "busybox cp /new.img /a.img; busybox mkdir /disk; busybox ln /a.img /disk/x"]',
        ).gives(NEW, 3)

    def test_a_second_disk(self, build):
        importing = build("COPY old.img /disk/old.img", "COPY new.img /disk/new.img")
        importing.refuses("DiskNotInImage", "'/disk/old.img' (layer 1), '/disk/new.img' (layer 2)")


class OciLayoutOf(OciLayout):
    """A layout that another program wrote."""

    def __post_init__(self) -> None:
        pass


class TestOverHttp:
    """Fetched layers, and faults."""

    @pytest.fixture
    def served(self, fault_server, tmp_path):
        def serve(*layers: bytes, faults=None, altered=None) -> Importing:
            """Serve layers; `faults` and `altered` (other content of the same length) are by layer number, from 0."""

            def described(content: bytes, kind: str) -> dict[str, object]:
                digest = hashlib.sha256(content).hexdigest()
                fault_server.put(f"/v2/a/b/blobs/sha256:{digest}", content)
                return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(content)}

            config = described(b'{"architecture": "amd64", "os": "linux"}', "application/vnd.oci.image.config.v1+json")
            described_layers = [described(one, "application/vnd.oci.image.layer.v1.tar") for one in layers]
            for number, one in enumerate(described_layers):
                path = f"/v2/a/b/blobs/{one['digest']}"
                content = (altered or {}).get(number, layers[number])
                fault_server.put(path, content, faults=(faults or {}).get(number, ()))
            manifest = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json"}
            body = json.dumps({**manifest, "config": config, "layers": described_layers}).encode()
            fault_server.put("/v2/", b"{}")
            fault_server.put("/v2/a/b/manifests/t", body)
            (tmp_path / "volume").mkdir()
            return Importing(f"docker://{fault_server.origin.partition('://')[2]}/a/b:t", tmp_path / "volume")

        return serve

    def test_a_single_layer_is_fetched_once(self, served):
        whole = layer(file("disk/x", NEW * 10))
        outcome = served(whole).run()
        assert (outcome.failure, outcome.fetched) == (None, len(whole))

    def test_lower_layers_are_fetched_once_after_the_disk(self, served, fault_server):
        lower, upper = layer(file("usr/x", OLD)), layer(file("disk/x", NEW))
        importing = served(lower, upper)
        outcome = importing.run()
        assert (outcome.failure, outcome.fetched) == (None, len(lower) + len(upper))

    @pytest.mark.parametrize("mask", [[directory("disk/"), file("disk/.wh..wh..opq", b"")], [file(".wh.disk", b"")]])
    def test_masked_layers_are_not_fetched(self, served, mask):
        upper = layer(*mask, file("disk/x", NEW))
        importing = served(layer(file("disk/y", OLD)), upper, faults={0: [Fault(status=404)] * 99})
        outcome = importing.run()
        assert (outcome.failure, outcome.fetched) == (None, len(upper))
        importing.gives(NEW, 2)

    @pytest.mark.parametrize("number", [0, 1])
    def test_a_layer_that_breaks_off_is_mended(self, served, number):
        importing = served(
            layer(file("usr/x", OLD)), layer(file("disk/x", NEW)), faults={number: [Fault(drop_after=99)]}
        )
        importing.gives(NEW, 2)

    def test_a_layer_that_breaks_off_without_ranges_is_read_again(self, served, fault_server):
        faults = {n: [Fault(drop_after=100_000), Fault(drop_after=200_000)] for n in (0, 1)}
        importing = served(layer(file("usr/x", OLD)), layer(file("disk/x", NEW)), faults=faults)
        for file_ in fault_server._files.values():
            file_.ranges = False
        outcome = importing.run()
        assert outcome.failure is None, outcome.failure
        assert importing.disk.read_bytes() == NEW

    @pytest.mark.parametrize("other", [layer(file("usr/x", NEW)), layer(file("disk/y", OLD)), bytes(len(NEW) + 2048)])
    def test_a_lower_layer_that_is_not_the_promised_one(self, served, other):
        right = layer(file("usr/x", OLD))
        altered = other[: len(right)].ljust(len(right), b"\0")
        importing = served(right, layer(file("disk/x", NEW)), altered={0: altered})
        failure = importing.run().failure
        # If the altered layer shows another disk, the import may fail before the digest is checked.
        assert failure is not None and failure.code in ("ChecksumMismatch", "DiskNotInImage")
        assert os.listdir(importing.disk.parent) == []
        refusal = importing.look(ASKS["inspect"]).refusal
        assert refusal is not None and refusal.code == failure.code

    def test_a_lower_layer_that_cannot_be_had_leaves_no_disk(self, served):
        importing = served(layer(file("usr/x", OLD)), layer(file("disk/x", NEW)), faults={0: [Fault(status=503)] * 99})
        importing.job = dataclasses.replace(importing.job, policy=Policy(retries=1, stall_timeout=10))
        failure = importing.run().failure
        assert failure is not None and failure.code == "SourceUnavailable"
        assert not importing.disk.exists()

    def test_a_large_image_is_inspected_by_its_beginning(self, served, monkeypatch):
        monkeypatch.setattr("cdi.explain.examine._READ_ALL", 1 << 20)
        lower, upper = layer(file("disk/y", OLD * 10)), layer(file("disk/x", NEW * 30), file("disk/z", NEW))
        importing = served(lower, upper)
        found = importing.look(ASKS["inspect"])
        assert (found.refusal, found.layer) == (None, 2)
        assert "the first file below /disk; 12 MiB of layers were not searched for others" in [
            check.detail for check in found.checks
        ]
        refusal = importing.look(ASKS["digest"]).refusal
        assert refusal is not None and refusal.code == "DiskNotInImage"
