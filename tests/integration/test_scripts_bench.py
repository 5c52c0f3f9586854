"""Tests of the benchmark itself: its measurements and its verdicts."""

import dataclasses
import hashlib
import os
import socket
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from bench_lib import machine, report
from bench_lib.cases import CASES, Case, Contender, Goal, beside
from bench_lib.delay import carry
from bench_lib.group import Tree, accounting
from bench_lib.images import DISKS, Images
from bench_lib.measure import Measurement, RunFailed, measure, warm
from bench_lib.results import CaseResult, Store, judge
from bench_lib.serve import Server, Unavailable
from bench_lib.ways import WAYS, Task

ENVIRONMENT = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}


def run(tmp_path, *command, **more):
    more = {"timeout": 60, **more}
    return measure(command, log=tmp_path / "log", environment=ENVIRONMENT, **more)


def python(tmp_path, text, **more):
    return run(tmp_path, sys.executable, "-c", text, **more)


# --- cases ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_case_refers_to_what_exists(case):
    labels = [contender.label for contender in case.contenders]
    assert len(set(labels)) == len(labels)
    assert "ours" in labels
    for contender in case.contenders:
        assert contender.way in WAYS
        assert contender.image.split(".")[0] in {*DISKS, "tiny", "boot"}
    for goal in case.goals:
        assert {goal.label, *goal.against} <= set(labels)
        assert goal.label not in goal.against


def test_case_names_are_unique():
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)


def test_another_environment_is_measured_beside_ours():
    case = next(case for case in CASES if case.name == "vmdk")
    found = beside(case, "/other/bin/python")
    ours, before = found.contenders[0], found.contenders[-1]
    assert before == dataclasses.replace(ours, label="before", python="/other/bin/python")
    assert [report.goal_text(goal) for goal in found.goals[-2:]] == ["wall ≤ 1.03 x before", "CPU ≤ 1.03 x before"]
    commands = []
    for contender in (ours, before):
        task = Task(contender=contender, image=None, url="http://x/", work=Path("/nowhere"), connections=1)
        commands.append(task.python)
    assert commands == [sys.executable, "/other/bin/python"]


# --- measurements -----------------------------------------------------------------------------------------------------


def test_bytes_written_are_those_of_all_children_deleted_or_not(tmp_path):
    command = "head -c 8388608 /dev/urandom >a; sh -c 'head -c 4194304 /dev/urandom >b'; sync a b; rm a b"
    found = run(tmp_path, "sh", "-c", f"cd {tmp_path}; {command}")
    assert 12 << 20 <= found.written < 14 << 20


def test_processor_time_is_that_of_the_whole_tree(tmp_path):
    burn = "import time\nwhile time.process_time() < 0.4: pass"
    found = python(tmp_path, f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}])")
    assert found.cpu >= 0.4


ALLOCATE = "import time; held = bytearray(80 << 20); held[::4096] = b'x' * len(held[::4096]); time.sleep(0.5)"


def test_peak_memory_is_what_is_held(tmp_path):
    found = python(tmp_path, ALLOCATE)
    assert 80 << 20 <= found.memory < 140 << 20


def test_memory_is_told_without_control_groups_too(tmp_path, monkeypatch):
    monkeypatch.setattr("bench_lib.measure.accounting", lambda limit: Tree())
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {ALLOCATE!r}])"
    found = python(tmp_path, child)
    assert 80 << 20 <= found.memory < 160 << 20
    assert "polled" in found.memory_how


@pytest.mark.root
def test_a_limit_is_a_limit(tmp_path):
    try:
        accounting(64 << 20).close()
    except SystemExit:
        pytest.skip("there is no memory controller")
    with pytest.raises(RunFailed):
        python(tmp_path, ALLOCATE, memory_limit=64 << 20)
    assert python(tmp_path, "pass", memory_limit=64 << 20).memory < 64 << 20


def test_a_failed_run_says_why(tmp_path):
    with pytest.raises(RunFailed, match="status 3: no such luck"):
        run(tmp_path, "sh", "-c", "echo no such luck >&2; exit 3")


def test_warming_copes_with_holes(tmp_path):
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(b"x" * 5000)
    warm(path)
    (tmp_path / "empty").touch()
    warm(tmp_path / "empty")


# --- servers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", ["full", "line", "latency"])
def test_a_line_carries_every_byte_and_counts_them(tmp_path, line):
    root = tmp_path / "root"
    root.mkdir()
    data = os.urandom(3 << 20)
    (root / "data").write_bytes(data)
    with ExitStack() as stack:
        try:
            server = stack.enter_context(Server(root, tmp_path, line))
        except Unavailable:
            pytest.skip("the kernel shapes no network links here")
        server.traffic()
        url = server.url(root / "data")
        run(tmp_path, "curl", "-sSf", "-o", str(tmp_path / "got"), url)
        run(tmp_path, "curl", "-sSf", "-r", "0-9", "-o", "/dev/null", url)
        assert hashlib.sha256((tmp_path / "got").read_bytes()).digest() == hashlib.sha256(data).digest()
        assert server.traffic() == (len(data) + 10, 1)
        assert server.traffic() == (0, 0)
    assert not Path("/sys/class/net/cdib0").exists() or line != "line"


def test_a_one_way_stream_has_no_ranges(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (root / "data").write_bytes(os.urandom(3000))
    with Server(root, tmp_path, "stream") as server:
        server.traffic()
        run(tmp_path, "curl", "-sSf", "-r", "0-9", "-o", "/dev/null", server.url(root / "data"))
        assert server.traffic() == (3000, 0)


# --- verdicts ---------------------------------------------------------------------------------------------------------


def measurement(wall, **more):
    values = {"cpu": wall / 2, "memory": 50 << 20, "written": 10_000_000} | more
    return Measurement(wall=wall, **values)


def result(runs, goals):
    case = Case(
        name="x",
        title="a case",
        contenders=tuple(Contender(label=label, way="ours", image="tiny.raw") for label in runs),
        goals=tuple(goals),
    )
    return CaseResult(name="x", case=case, runs=runs, notes=[], sizes={"tiny.raw": 1}, when="2026-01-01", machine={})


def test_a_goal_takes_medians_and_the_best_of_the_others():
    goal = Goal(metric="wall", limit=0.5, against=("slow", "quick", "absent"))
    found = result(
        {
            "ours": [measurement(1), measurement(100), measurement(2)],
            "slow": [measurement(50)],
            "quick": [measurement(4)],
            "absent": [],
        },
        [goal],
    )
    verdict = judge(found, goal)
    assert (verdict.ours, verdict.other, verdict.best, verdict.ratio) == (2, 4, "quick", 0.5)
    assert verdict.reached is True
    assert judge(found, dataclasses.replace(goal, limit=0.49)).reached is False


def test_a_goal_may_allow_a_little_more():
    goal = Goal(metric="wall", limit=1.0, against=("by hand",), extra=5.0)
    for ours, reached in ((14.9, True), (15.1, False)):
        found = result({"ours": [measurement(ours)], "by hand": [measurement(10)]}, [goal])
        assert judge(found, goal).reached is reached
    assert report.goal_text(goal) == "wall ≤ 1 x by hand + 5.00 s"


def test_what_could_not_be_measured_is_not_reached_nor_missed():
    goal = Goal(metric="wall", limit=0.5, against=("absent",))
    assert judge(result({"ours": [measurement(1)], "absent": []}, [goal]), goal).reached is None
    assert judge(result({"ours": [], "absent": [measurement(1)]}, [goal]), goal).reached is None


def test_an_absolute_goal_has_no_other():
    goal = Goal(metric="scratch", limit=0)
    assert judge(result({"ours": [measurement(1)]}, [goal]), goal).reached is True
    assert judge(result({"ours": [measurement(1, scratch=1)]}, [goal]), goal).reached is False


def test_results_are_kept_and_the_page_is_written_from_them(tmp_path):
    goals = [Goal(metric="wall", limit=0.33, against=("old path",)), Goal(metric="memory", limit=1 << 20)]
    found = result({"ours": [measurement(1)], "old path": [measurement(4)]}, goals)
    store = Store(tmp_path)
    store.save(found)
    assert store.load([found.case]) == [found]
    page = report.page(store.load([found.case]))
    assert "**1 of 2 goals reached.**" in page
    assert "| 1.00 s | 4.00 s | 0.25  | yes " in page
    assert "**no**" in page
    assert str(tmp_path) not in page


def test_a_goal_names_whose_it_is_unless_it_is_ours():
    goal = Goal(metric="scratch", limit=0, label="ours, streamed")
    assert report.goal_text(goal) == "streamed: no scratch"
    assert report.goal_text(dataclasses.replace(goal, label="ours")) == "no scratch"


def test_a_busy_machine_is_told(monkeypatch):
    monkeypatch.setattr("os.getloadavg", lambda: (21.4, 0.0, 0.0))
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert machine.busy() == ["the machine was busy with other work: load average 21 on 2 processors"]
    monkeypatch.setattr("os.getloadavg", lambda: (3.0, 0.0, 0.0))
    assert machine.busy() == []


def test_the_table_stays_a_table():
    for case in CASES:
        rows = report.goals_table([dataclasses.replace(result({}, []), case=case)]).splitlines()
        assert {row.count("|") for row in rows} == {7}


# --- compared tools ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    directory = tmp_path_factory.mktemp("bench")
    images = Images(directory, quick=True)
    raw = images.directory / "2g.raw"
    with raw.open("wb") as file:
        file.truncate(16 << 20)
        for position in (0, 5 << 20, (16 << 20) - 4096):
            file.seek(position)
            file.write(os.urandom(2048) * 2)
    with Server(images.directory, directory, "full") as server:
        yield images, server


@pytest.mark.parametrize(
    ("way", "image"),
    [
        *((way, "2g.qcow2c") for way in ("ours", "old", "nbdkit", "local")),
        *((way, "2g.raw") for way in ("ours", "dd")),
        ("ours", "2g.vhdx"),
        ("ours", "2g.vmdk-stream"),
        ("old", "2g.vmdk"),
        ("pigz", "2g.raw.gz"),
        ("gzip", "2g.raw.gz"),
        ("zstd", "2g.raw.zst"),
        ("xz", "2g.raw.xz"),
        ("curl-many", "2g.qcow2"),
    ],
)
def test_a_way_makes_the_disk(tmp_path, served, way, image):
    images, server = served
    found = images.get(image)
    contender = Contender(label="x", way=way, image=image)
    task = Task(contender=contender, image=found, url=server.url(found.path), work=tmp_path, connections=3)
    server.traffic()
    run(tmp_path, *WAYS[way].command(task))
    fetched, _ = server.traffic()
    # nbdkit requests only what is mapped, and so do we; of these images only that one has much else.
    if way not in {"local", "nbdkit"} and image != "2g.vhdx":
        assert fetched >= found.path.stat().st_size
    if WAYS[way].makes_disk:
        assert task.out.read_bytes() == found.raw.read_bytes()
    assert not task.scratch.exists()


@pytest.mark.parametrize("way", ["golden", "by-hand"])
def test_a_golden_image_is_imported_and_booted(tmp_path, served, way):
    images, server = served
    found = images.get("boot.qcow2c")
    contender = Contender(label="x", way=way, image=found.name)
    digest = images.sha256(found)
    task = Task(
        contender=contender, image=found, url=server.url(found.path), work=tmp_path, connections=3, checksum=digest
    )
    if WAYS[way].prepare is not None:
        WAYS[way].prepare(task)
    try:
        run(tmp_path, *WAYS[way].command(task), timeout=400)
        assert task.out.read_bytes() == found.raw.read_bytes()
    finally:
        WAYS[way].finish(task)


def test_an_upload_fills_the_volume(tmp_path, served):
    images, server = served
    found = images.get("2g.qcow2c")
    contender = Contender(label="x", way="cdi-upload", image=found.name)
    task = Task(contender=contender, image=found, url=server.url(found.path), work=tmp_path, connections=3)
    try:
        run(tmp_path, *WAYS["cdi-upload"].command(task))
        assert task.out.read_bytes() == found.raw.read_bytes()
    finally:
        WAYS["cdi-upload"].finish(task)


def test_the_delaying_proxy_ends_when_one_side_does(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as target, socket.create_server(("127.0.0.1", 0)) as front:
        port = target.getsockname()[1]

        def serve():
            server, _ = target.accept()
            with server:
                server.sendall(server.recv(100)[::-1])

        answering = threading.Thread(target=serve)
        answering.start()
        with socket.create_connection(front.getsockname()) as client:
            inner, _ = front.accept()
            carrying = threading.Thread(target=carry, args=(inner, port, 0.02))
            carrying.start()
            client.sendall(b"hello")
            client.shutdown(socket.SHUT_WR)
            assert client.recv(100) == b"olleh"
            assert client.recv(100) == b""
        answering.join(10)
        carrying.join(10)
        assert not carrying.is_alive()
