"""Many targets of one source, each a separate worker, over real TLS: the source is read about once."""

import contextlib
import os
import subprocess
import threading
import time

import pytest

from cdi.api.copy import CopySourceJob, Ticket
from cdi.api.job import BlockTargetSpec, DirectoryTargetSpec, FileTargetSpec, Job, Policy
from cdi.api.peer import CLIENT_NAME, EACH_TARGET, PeerSourceSpec, TlsFiles
from cdi.transfer.clone import window
from cdi.transfer.clone.send import send
from cdi.transfer.control import TransferControl
from tests.clone_digest import digest_of_file as digest
from tests.integration.clone.pair import Target, write_roster
from tests.integration.clone.peers import Clone, free_port
from tests.integration.clone.test_archives import build, tree
from tests.integration.clone.test_kills import write_disk

MIB = 1 << 20
DATA = 84 * MIB
"""Data of `write_disk`, in whole chunks."""


class Many:
    """Source and its targets, all of them processes."""

    def __init__(self, directory, certificates, source, count, *, client="client", **fields):
        self.directory, self.certificates = directory, certificates
        self.targets = {}
        self.tickets = {}
        for number in range(count):
            name = f"t{number}"
            (directory / name).mkdir(parents=True)
            port = free_port()
            self.tickets[name] = Ticket(id=name, address=f"127.0.0.1:{port}", attempt="1")
            # The source that belongs to this `Clone` is never started.
            ends = Clone(directory / name / "pods", certificates, source, directory / name / "disk.img")
            client = fields.get("names", {}).get(name, CLIENT_NAME)
            ends.target = Job(
                id=name,
                source=PeerSourceSpec(port=port, tls=certificates.server, client_name=client, patience=60),
                target=FileTargetSpec(path=str(directory / name / "disk.img")),
                journal=str(directory / name / "journal"),
            )
            self.targets[name] = ends
        self.reader = Clone(directory / "reader", certificates, source, directory / "unused")
        self.reader.source = CopySourceJob(
            id="reader",
            path=str(source),
            targets=str(directory / "targets"),
            tls=fields.get("tls", certificates.client),
            expected=fields.get("expected", count),
            linger=fields.get("linger", 0.0),
            patience=60,
        )

    def ticket_file(self):
        write_roster(self.reader.source.targets, *self.tickets.values())
        return self

    def start(self):
        self.ticket_file()
        for ends in self.targets.values():
            ends.start("target")
        self.reader.start("source")
        return self

    def done(self, name):
        """Return the bytes of the disk that a target has on its volume."""
        with contextlib.suppress(OSError):
            return os.stat(self.directory / name / ".disk.img.partial").st_blocks * 512
        return 0

    def close(self):
        for ends in (*self.targets.values(), self.reader):
            ends.close()


@pytest.fixture
def many(tmp_path, certificates):
    with contextlib.ExitStack() as stack:

        def make(source, count, **fields):
            made = Many(tmp_path / "many", certificates, source, count, **fields)
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture
def source(tmp_path):
    return write_disk(tmp_path / "source.img", 7)


def memory_of(process):
    """Return the peak memory in bytes."""
    with contextlib.suppress(OSError), open(f"/proc/{process.pid}/status") as status:
        for line in status:
            if line.startswith("VmHWM"):
                return int(line.split()[1]) << 10
    return 0


def test_five_are_filled_by_one_reading_though_one_is_slow_and_one_is_killed(many, source):
    before = digest(source)
    clones = many(source, 5)
    # The slow target gets less than the others in the same time, and they wait for it within bounds.
    clones.tickets["t1"] = Ticket(id="t1", address=clones.tickets["t1"].address, attempt="1", bandwidth=18 * MIB)
    clones.start()
    killed = clones.targets["t3"]
    most = 0
    while clones.reader.running("source"):
        most = max(most, memory_of(clones.reader.processes["source"]))
        if killed.processes["target"].returncode is None and clones.done("t3") > 0.75 * DATA:
            assert killed.kill("target")
            killed.start("target")
            break
        time.sleep(0.01)
    else:
        pytest.fail("the reader ended before it was half done")
    while clones.reader.running("source"):
        most = max(most, memory_of(clones.reader.processes["source"]))
        time.sleep(0.05)
    sent = clones.reader.wait("source")
    outcomes = {name: ends.wait("target") for name, ends in clones.targets.items()}
    assert sent.failure is None, clones.reader.log("source")
    for name, outcome in outcomes.items():
        assert outcome.failure is None, clones.targets[name].log("target")
        assert outcome.digest == before == digest(clones.directory / name / "disk.img")
        subprocess.run(
            ["qemu-img", "compare", "-q", "-f", "raw", "-F", "raw", source, clones.directory / name / "disk.img"],
            check=True,
        )
    print({name: outcome.resumed_at for name, outcome in outcomes.items()})
    print(f"read {sent.fetched / DATA:.2f} x, sent {sent.written / DATA:.2f} x, {most / MIB:.0f} MiB")
    assert sent.fetched <= 1.3 * DATA
    assert 0 < most < 192 * MIB
    assert digest(source) == before


def test_the_source_is_read_once_for_as_many_as_there_may_be(many, tmp_path):
    """Few target processes run on this machine, but many targets are assigned."""
    source = write_disk(tmp_path / "source.img", 8)
    clones = many(source, 4, expected=4)
    clones.start()
    sent = clones.reader.wait("source", 100)
    for ends in clones.targets.values():
        assert ends.wait("target").failure is None, ends.log("target")
    assert sent.fetched == DATA
    assert sent.written >= 4 * 60 * MIB


def test_targets_that_come_later_are_served_too(many, source):
    clones = many(source, 3, expected=1, linger=20.0)
    late = {name: clones.tickets.pop(name) for name in ("t1", "t2")}
    clones.start()
    assert clones.targets["t0"].wait("target").failure is None
    clones.tickets.pop("t0")
    clones.tickets |= late
    clones.ticket_file()
    for name in late:
        assert clones.targets[name].wait("target").failure is None, clones.targets[name].log("target")
    assert clones.reader.running("source")
    clones.reader.processes["source"].terminate()
    outcome = clones.reader.wait("source")
    assert outcome.failure is None or outcome.failure.code == "Interrupted"


def test_a_target_that_is_named_no_more_is_let_go_and_the_others_are_not_disturbed(many, source):
    clones = many(source, 3)
    clones.tickets = {
        name: Ticket(id=name, address=one.address, bandwidth=20 * MIB) for name, one in clones.tickets.items()
    }
    clones.start()
    while clones.done("t0") < DATA / 8:
        time.sleep(0.02)
    clones.tickets.pop("t0")
    clones.ticket_file()
    for name in ("t1", "t2"):
        assert clones.targets[name].wait("target").failure is None
    assert clones.reader.wait("source").failure is None
    assert clones.targets["t0"].running("target")
    assert not os.path.exists(clones.directory / "t0" / "disk.img")


def test_each_target_is_shown_a_certificate_of_its_own(many, certificates, source, tmp_path):
    """Targets reject each other's certificates; the source waits for a certificate that is created late."""
    place = tmp_path / "own"
    place.mkdir()

    def certify(target):
        leaf = certificates.ca.issue_cert(common_name=f"clone.{target}")
        leaf.private_key_pem.write_to_path(place / f"{target}.key")
        (place / f"{target}.crt").write_bytes(b"".join(pem.bytes() for pem in leaf.cert_chain_pems))

    tls = TlsFiles(
        certificate=str(place / f"{EACH_TARGET}.crt"), key=str(place / f"{EACH_TARGET}.key"), ca=certificates.client.ca
    )
    names = {"t0": "clone.t0", "t1": "clone.t1", "t2": "clone.another"}
    clones = many(source, 3, names=names, tls=tls)
    certify("t0")
    certify("t2")
    clones.start()
    assert clones.targets["t0"].wait("target").failure is None
    assert clones.targets["t1"].running("target")
    certify("t1")
    assert clones.targets["t1"].wait("target").failure is None
    sent = clones.reader.wait("source")
    assert any("t2: " in warning and "does not belong to a clone source" in warning for warning in sent.warnings)
    assert clones.targets["t2"].running("target")
    assert not os.path.exists(clones.directory / "t2" / "disk.img")


def reader_of(directory, certificates, path, targets, **fields):
    tickets = [Ticket(id=target.job.id, address=f"127.0.0.1:{target.port}") for target in targets]
    write_roster(directory / "roster", *tickets)
    job = CopySourceJob(
        id="reader",
        path=str(path),
        targets=str(directory / "roster"),
        tls=certificates.client,
        expected=len(targets),
        patience=20,
        **fields,
    )
    control = TransferControl(job)
    return job, control


def test_one_tree_to_several(tmp_path, certificates, monkeypatch):
    # A target that is late or lags on a busy machine would get a pass of its own, and the source be read again.
    monkeypatch.setattr(window, "GATHER_WINDOW", 3600.0)
    monkeypatch.setattr(window, "MAX_STALL", 3600.0)
    source = build(tmp_path / "source")
    targets = []
    for number in range(3):
        (tmp_path / f"t{number}").mkdir()
        place = DirectoryTargetSpec(path=str(tmp_path / f"t{number}"))
        targets.append(Target(certificates, place, id=f"t{number}", content_type="archive"))
    sent = send(*reader_of(tmp_path, certificates, source, targets, content_type="archive"))
    assert sent.failure is None
    for number, target in enumerate(targets):
        assert target.end().failure is None
        assert tree(tmp_path / f"t{number}") == tree(source)
    single = sent.written / 3
    assert sent.fetched < 1.1 * single


def test_one_target_without_room_ends_alone(tmp_path, certificates, source):
    targets = [Target(certificates, tmp_path / f"{n}.img", id=f"t{n}", size=size) for n, size in ((0, None), (1, MIB))]
    sent = send(*reader_of(tmp_path, certificates, source, targets))
    assert targets[0].end().failure is None
    assert targets[1].end().failure.code == "TargetTooSmall"
    assert sent.failure is None
    assert any(warning.startswith("t1: ") for warning in sent.warnings)


def test_a_source_that_is_written_to_is_begun_again_for_all(tmp_path, certificates, source):
    targets = [Target(certificates, tmp_path / f"{n}.img", id=f"t{n}") for n in range(3)]
    job, control = reader_of(tmp_path, certificates, source, targets, policy=Policy(bandwidth=60 * MIB))

    def write():
        while control.meter.done < 10 * MIB and control.meter.phase != "done":
            time.sleep(0.005)
        with open(source, "r+b") as file:
            file.seek(MIB)
            file.write(b"written meanwhile")

    threading.Thread(target=write, daemon=True).start()
    sent = send(job, control)
    assert sent.failure is None
    wanted = digest(source)
    for number, target in enumerate(targets):
        assert target.end().failure is None
        assert digest(tmp_path / f"{number}.img") == wanted
    assert any("was modified" in warning for warning in sent.warnings)


def test_the_block_target_is_the_same(tmp_path, certificates, source):
    """Use a block device as target, which the source cannot distinguish."""
    with open(tmp_path / "device", "wb") as file:
        file.truncate(os.stat(source).st_size)
    if not os.path.exists("/dev/loop-control") or os.geteuid() != 0:
        pytest.skip("needs root")
    from tests.integration.target.test_devices import loop

    with loop(tmp_path / "dirty", os.stat(source).st_size, 512) as device:
        targets = [
            Target(certificates, BlockTargetSpec(path=device), id="t0"),
            Target(certificates, tmp_path / "1.img", id="t1"),
        ]
        sent = send(*reader_of(tmp_path, certificates, source, targets))
        assert sent.failure is None
        assert [target.end().failure for target in targets] == [None, None]
        assert digest(device) == digest(source) == digest(tmp_path / "1.img")
