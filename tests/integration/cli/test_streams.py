"""Tests of commands whose standard streams are closed, full, or have no reader."""

from __future__ import annotations

import os
import subprocess

import pytest

MIB = 1 << 20
PRINTING = [
    "",
    "get --help",
    "get dv -o json",
    "describe dv/k1",
    "logs dv/k1",
    "inspect disk.raw",
    "explain disk.raw -o json",
    "version",
    "completion bash",
    "apply -f dv.yaml --dry-run",
    "batch images.yaml -o json",
    "clone k1 k2 --no-wait",
    "import disk.raw --to copy.raw --force -o json",
    "delete dv/k1",
]
MANIFEST = """
apiVersion: cdi.kubevirt.io/v1beta1
kind: DataVolume
metadata: {name: applied}
spec: {source: {blank: {}}, storage: {resources: {requests: {storage: 1Mi}}}}
"""


@pytest.fixture
def place(cdi, tmp_path):
    """Create a CDI_HOME with volume k1, and the files that the commands above name."""
    content = os.urandom(4 * MIB)
    (tmp_path / "disk.raw").write_bytes(content)
    (tmp_path / "dv.yaml").write_text(MANIFEST)
    (tmp_path / "images.yaml").write_text("images: [{name: b1, url: disk.raw, size: 4Mi}]\n")
    cdi("import", "disk.raw", "--name", "k1", "--size", "4Mi")
    return content


def closed(*descriptors):
    """Return a function that closes descriptors, for `preexec_fn`."""

    def close():
        for descriptor in descriptors:
            os.close(descriptor)

    return close


def run(cdi, line, **options):
    options = {"stdin": subprocess.DEVNULL, "stderr": subprocess.PIPE, **options}
    return subprocess.run(
        cdi.command(*line.split()), cwd=cdi.cwd, env=cdi.variables, text=True, timeout=110, check=False, **options
    )


def test_a_full_standard_output_is_one_sentence_and_a_status_of_its_own(cdi, place):
    for line in PRINTING:
        with open("/dev/full", "w") as full:
            done = run(cdi, line, stdout=full)
        last = done.stderr.splitlines()[-1]
        assert done.returncode == 12, (line, done.stderr)
        assert last.startswith("error[OutputFailed]: cannot write to standard output: No space left on device."), line
        assert "Traceback" not in done.stderr
        assert "Exception ignored" not in done.stderr


def test_a_reader_that_is_gone_ends_every_command_quietly_as_sigpipe_would(cdi, place):
    for line in PRINTING:
        reading, writing = os.pipe()
        os.close(reading)
        done = run(cdi, line, stdout=writing)
        os.close(writing)
        assert done.returncode == 141, (line, done.stderr)
        for word in ("error", "Traceback", "Exception", "BrokenPipe"):
            assert word not in done.stderr, line


@pytest.mark.parametrize("descriptors", [(1,), (0, 1, 2)], ids=str)
def test_closed_streams_change_nothing_but_what_is_seen(cdi, place, descriptors):
    """The disk that is written is unchanged, too: its descriptor must not become the standard output."""
    for line in PRINTING:
        options = {} if 2 not in descriptors else {"stderr": None}
        done = run(cdi, line, stdout=subprocess.PIPE, preexec_fn=closed(*descriptors), **options)
        assert done.returncode == 0, (line, done.stderr)
        assert "Traceback" not in (done.stderr or "")
    assert (cdi.cwd / "copy.raw").read_bytes() == place


@pytest.mark.parametrize("line", ["import - --name x --size 4Mi", "import - --to x.raw", "inspect -", "explain -",
                                  "upload - x --size 4Mi", "apply -f -", "delete -f -", "batch -"])  # fmt: skip
def test_a_closed_standard_input_is_no_empty_image(cdi, line):
    done = run(cdi, line, stdout=subprocess.PIPE, preexec_fn=closed(0))
    assert done.returncode == 2
    assert done.stderr.startswith("error[UsageError]: standard input ")
    assert len(done.stderr.splitlines()) == 1


def test_a_full_standard_error_does_not_end_the_work(cdi, place):
    with open("/dev/full", "w") as full:
        done = run(cdi, "import disk.raw --name k3 --size 4Mi", stdout=subprocess.PIPE, stderr=full)
        failed = run(cdi, "nonsense", stdout=subprocess.PIPE, stderr=full)
    assert (done.returncode, failed.returncode) == (0, 2)
    assert cdi.disk("k3").read_bytes() == place


def test_a_stream_that_passes_through_the_command_is_given_up_with_it(cdi, tmp_path):
    """Otherwise its worker would take the end of the command for the end of the image."""
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", tmp_path / "i.qcow2", "4M"], check=True)
    reading, writing = os.pipe()
    with open("/dev/full", "w") as full, subprocess.Popen(["cat", "i.qcow2"], cwd=tmp_path, stdout=writing) as cat:
        os.close(writing)
        done = run(cdi, "import - --name piped", stdin=reading, stdout=full)
        os.close(reading)
        cat.wait()
    assert done.returncode == 12
    assert "removed" in done.stderr
    assert "piped" not in cdi("get", "dv", "-o", "name").stdout
