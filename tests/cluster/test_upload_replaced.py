"""Messages of ``virtctl image-upload``, built from KubeVirt's Go module, when upload pods are replaced."""

from __future__ import annotations

import gzip
import lzma

import pytest

from tests.cluster.fault_injection import kill_inside, take_away
from tests.cluster.test_apiserver import until
from tests.cluster.upload_api import TIMEOUT
from tests.cluster.upload_release import UPLOAD, annotations, server_pod, succeeded
from tests.cluster.volumes import MIB, converted, data_volume, disk
from tests.vmdk_writer import needs_qemu

pytestmark = pytest.mark.timeout(TIMEOUT)
FORMATS = {
    "qcow2": ("qcow2",),
    "large-grains": None,
    "vmdk": ("vmdk",),
    "vdi": ("vdi",),
    "vhd": ("vpc", "-o", "force_size=on"),
    "vhdx": ("vhdx",),
}
WRAPPERS = {
    "": lambda data: data,
    ".gz": lambda data: gzip.compress(data, 1),
    ".xz": lambda data: lzma.compress(data, preset=0),
}
SLOWLY = {"cdi.kubevirt.io/policy.bandwidth": "2Mi"}
"""Bandwidth limit with which an upload of 24 MiB takes long enough."""


@pytest.fixture(scope="module")
def content():
    return disk(24 * MIB)


@pytest.fixture(scope="module")
def raw(content, tmp_path_factory):
    path = tmp_path_factory.mktemp("image") / "disk.raw"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("image_format", FORMATS)
def test_an_image_of_any_format_is_uploaded_at_the_first_try(uploads, virtctl, content, tmp_path, image_format):
    options = FORMATS[image_format]
    plain = needs_qemu(content) if options is None else converted(content, tmp_path, *options)
    storage_class = "csi" if image_format in {"large-grains", "vhdx"} else "local"
    modes, processes = {}, []
    for wrapper, wrap in WRAPPERS.items():
        image = tmp_path / f"disk.{image_format}{wrapper}"
        image.write_bytes(wrap(plain))
        name = f"{image_format}{wrapper.replace('.', '-')}"
        modes[name] = "Block" if wrapper else "Filesystem"
        claim = (
            "--size=32Mi",
            "--access-mode=ReadWriteOnce",
            f"--storage-class={storage_class}",
            f"--volume-mode={modes[name].lower()}",
        )
        # One attempt instead of five, because the second could find the replaced pod.
        processes.append(virtctl.upload(name, image, *claim, "--retry=1"))
    for process in processes:
        succeeded(process)
    uploads.hold(modes, content)
    # A pod without scratch space is replaced only for what QEMU reads.
    restarts = 1 if image_format == "large-grains" else 0
    for name in modes:
        assert int(annotations(uploads.work, name)["storage.pod.restarts"]) == restarts


@pytest.mark.parametrize("blow", ["killed", "evicted", "taken away"])
def test_an_upload_pod_that_ends_is_no_end_of_the_upload(uploads, virtctl, content, raw, blow):
    names = [f"{blow.replace(' ', '-')}-{kind}" for kind in ("csi", "local")]
    uploads.work.create(
        *(data_volume(name, UPLOAD, name.rpartition("-")[2], size="64Mi", annotations=SLOWLY) for name in names)
    )
    uploads.ready(*names)
    processes = [virtctl.upload(name, raw, "--no-create") for name in names]
    for name in names:
        # More than a retry can send again.
        until("some of it is there", lambda name=name: uploads.received(name) > 2 * MIB)
        pod = server_pod(uploads.work, name)
        match blow:
            case "killed":
                kill_inside(uploads.cluster, pod)
            case "evicted":
                uploads.work.run("delete", "pod", pod["metadata"]["name"], "--wait=false")
            case _:
                take_away(uploads.work, pod["metadata"]["name"])
    for process in processes:
        succeeded(process)
    uploads.hold(dict.fromkeys(names, "Filesystem"), content)


def test_an_upload_that_comes_while_its_pod_is_replaced_waits(uploads, virtctl, content, raw):
    name = "waits"
    uploads.volume(name, "local", size="64Mi")
    uploads.ready(name)
    kill_inside(uploads.cluster, server_pod(uploads.work, name))
    process = virtctl.upload(name, raw, "--no-create", "--retry=1")
    succeeded(process)
    uploads.hold({name: "Filesystem"}, content)
