"""Tests of the modules that a worker imports, which cost more processor time than a small image."""

import json
import subprocess
import sys

import pytest

from cdi.api.job import BlankSourceSpec, FileTargetSpec, Job
from tests.integration.transfer.test_registry_retries import PATHS
from tests.integration.transfer.test_registry_retries import job as registry_job
from tests.integration.transfer.worker_process import disk_job
from tests.qcow2_writer import Layout, disk_of, write

HEAVY = {"aiohttp", "asyncio", "boto3", "botocore", "click", "google", "kubernetes", "pydantic", "qemu", "tqdm", "yaml"}
LIGHT_RUN = """
import sys
from cdi.worker.run import main
status = main(sys.argv[1:])
print("modules:", *sorted(sys.modules))
sys.exit(status)
"""


def modules_of(script, *arguments, bytecode=None):
    options = ["-X", f"pycache_prefix={bytecode}"] if bytecode else []
    command = [sys.executable, *options, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in done.stdout.rpartition("modules:")[2].split()}


def test_importing_the_worker():
    found = modules_of("import sys, cdi.worker.run; print('modules:', *sys.modules)")
    assert "cdi" in found
    assert found & HEAVY == set()


@pytest.mark.parametrize("ranges", [True, False])
def test_a_qcow2_over_http(fault_server, tmp_path, ranges):
    layout = Layout(1 << 20, 16, {0: (b"x" * 65536, False), 7: (b"y" * 65536, True)})
    url = fault_server.put("/disk.qcow2", write(layout), ranges=ranges)
    job = disk_job("x", url, tmp_path)
    (tmp_path / "job.json").write_text(job.to_json())
    # Compiling a module may import others: it must not matter whether compiled modules exist.
    found = modules_of(
        LIGHT_RUN, "run", str(tmp_path / "job.json"), "--status-dir", str(tmp_path), bytecode=tmp_path / "none"
    )
    assert json.loads((tmp_path / "outcome.json").read_text())["failure"] is None
    assert (tmp_path / "disk.img").read_bytes() == disk_of(layout)
    # The libraries for other compression formats are not imported either.
    assert found & (HEAVY | {"lzma", "_lzma", "tarfile", "cryptography"}) == set()
    # Nor is the codec for international host names, which look-ups of other names would import.
    assert found & {"stringprep", "unicodedata", "platform"} == set()


def test_a_checksum_does_not_change_that(fault_server, tmp_path):
    import hashlib

    data = b"x" * 4096
    url = fault_server.put("/disk.raw", data)
    job = disk_job("x", url, tmp_path, checksum="sha256:" + hashlib.sha256(data).hexdigest())
    (tmp_path / "job.json").write_text(job.to_json())
    found = modules_of(LIGHT_RUN, "run", str(tmp_path / "job.json"), "--status-dir", str(tmp_path))
    assert found & HEAVY == set()


def test_a_raw_image_needs_no_reader_of_another_format(fault_server, tmp_path):
    url = fault_server.put("/disk.raw", b"x" * 4096)
    (tmp_path / "job.json").write_text(disk_job("x", url, tmp_path).to_json())
    script = LIGHT_RUN.replace("*sorted(sys.modules)", "*(name.replace('.', '/') for name in sys.modules)")
    found = modules_of(script, "run", str(tmp_path / "job.json"), "--status-dir", str(tmp_path))
    assert json.loads((tmp_path / "outcome.json").read_text())["failure"] is None
    assert "cdi/transfer/pipeline/raw" in found
    formats = {"vdi", "vhdx", "vmdk", "vpc", "qcow2", "vmdk_descriptor"}
    unneeded = {f"cdi/image/formats/{name}" for name in formats}
    unneeded |= {f"cdi/transfer/pipeline/{name}" for name in ("mapped_ranged", "mapped_stream", "cluster_writer")}
    assert found & unneeded == set()
    assert found & {"deflate", "isal", "hashlib", "cdi/verify/hashing"} == set()


def test_a_worker_that_ends_collects_no_garbage():
    script = """
import atexit, gc
# Functions that are registered first are called last.
atexit.register(lambda: print("modules:", f"frozen={gc.get_freeze_count() > 10_000}", f"enabled={gc.isenabled()}"))
from cdi.worker.__main__ import command
assert command(["run"]) != 0
"""
    assert modules_of(script) == {"frozen=True", "enabled=False"}


def test_a_container_image_does_not_change_that(fault_server, tmp_path):
    for path, content in PATHS.items():
        fault_server.put(path, content)
    (tmp_path / "job.json").write_text(registry_job(fault_server, tmp_path).to_json())
    found = modules_of(LIGHT_RUN, "run", str(tmp_path / "job.json"), "--status-dir", str(tmp_path))
    assert json.loads((tmp_path / "outcome.json").read_text())["failure"] is None
    assert found & (HEAVY | {"yarl"}) == set()


def test_nor_does_a_pod(fault_server, tmp_path):
    data = b"x" * 4096
    job = disk_job("x", fault_server.put("/disk.raw", data), tmp_path)
    (tmp_path / "job.json").write_text(job.to_json())
    script = "import cdi.worker.pod\ncdi.worker.pod._SERVE_AFTER = 1e9\n" + LIGHT_RUN.replace(
        "worker.run", "worker.pod"
    )
    files = (f"--job={tmp_path}/job.json", f"--termination-log={tmp_path}/end")
    found = modules_of(script, *files)
    assert json.loads((tmp_path / "end").read_text())["message"] == "Import Complete"
    # There is no server and no certificate until the controller may request progress.
    assert found & (HEAVY | {"cryptography", "argparse"}) == set()


def test_an_empty_disk_needs_no_image_and_no_source(tmp_path):
    job = Job(id="x", source=BlankSourceSpec(), target=FileTargetSpec(path=str(tmp_path / "disk.img")), size=1 << 20)
    (tmp_path / "job.json").write_text(job.to_json())
    script = """
import sys
from cdi.worker.pod import main
status = main(sys.argv[1:])
print("modules:", *(name.replace(".", "/") for name in sys.modules))
sys.exit(status)
"""
    found = modules_of(script, f"--job={tmp_path}/job.json", f"--termination-log={tmp_path}/end", "--port=0")
    assert (tmp_path / "disk.img").stat().st_size == 1 << 20
    unneeded = ("cdi/image/", "cdi/codec/", "cdi/verify/", "cdi/source/http", "cdi/transfer/disk", "cdi/api/rules")
    assert [name for name in found if name.startswith(unneeded) and name != "cdi/image/sizes"] == []
    assert found & {"urllib/parse", "fractions", "ssl", "cryptography"} == set()
