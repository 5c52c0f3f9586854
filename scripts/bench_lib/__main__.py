"""scripts/bench: measure, print the table of goals, write docs/reference/benchmarks.md with its plots."""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import json
import os
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from bench_lib import machine, plots, report, results
from bench_lib.cases import CASES, Case, Contender, Line, beside
from bench_lib.images import Images
from bench_lib.measure import Measurement, RunFailed, measure, settle, warm
from bench_lib.results import CaseResult
from bench_lib.serve import Server, Unavailable
from bench_lib.ways import WAYS, Task, missing, outcome, warm_programs

_TIMEOUT = 1800.0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Compare cdi with the ways that exist without it. Contenders take turns; medians are compared.",
    )
    parser.add_argument(
        "--case", action="append", metavar="NAME", help="run only cases that match this pattern; repeatable"
    )
    parser.add_argument(
        "-n", type=int, default=5, metavar="RUNS", help="set the number of runs of each contender (default 5)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="run once with small images, to check that everything works; write nothing"
    )
    parser.add_argument("--no-write", action="store_true", help="do not write docs/reference/benchmarks.md")
    parser.add_argument("--report", action="store_true", help="measure nothing; write the page from earlier results")
    parser.add_argument(
        "--before",
        metavar="PYTHON",
        help="measure the cdi of another environment too (its interpreter), taking turns; write nothing",
    )
    parser.add_argument("--images", action="store_true", help="build the images and measure nothing")
    parser.add_argument("--list", action="store_true", help="list the cases and their goals")
    arguments = parser.parse_args()
    if arguments.list:
        print(report.listing(CASES), end="")
        return 0
    patterns: list[str] = arguments.case or ["*"]
    chosen = [case for case in CASES if any(fnmatch.fnmatch(case.name, pattern) for pattern in patterns)]
    if not chosen:
        parser.error(f"no case is named {', '.join(patterns)}; see --list")
    if arguments.before is not None:
        if shutil.which(arguments.before) is None:
            parser.error(f"no interpreter: {arguments.before}")
        chosen = [beside(case, arguments.before) for case in chosen]
    transient = arguments.quick or arguments.before is not None
    cache = Path(os.environ["CDI_CACHE"]) / "bench"
    store = results.Store(cache / "results")
    if not arguments.report:
        bench = Bench(cache, quick=arguments.quick, runs=1 if arguments.quick else arguments.n)
        if arguments.images:
            bench.make_images(chosen)
            return 0
        measured = bench.run(chosen, None if transient else store)
        print()
        print(report.goals_table(measured), end="")
        if transient:
            return 0 if all(result.complete for result in measured) else 1
    if not arguments.no_write:
        write(store.load(CASES), Path(__file__).parents[2] / "docs" / "reference")
    return 0


def write(measured: list[CaseResult], directory: Path) -> None:
    """Write the page, its numbers and its plots."""
    numbers = plots.numbers(measured)
    files = {
        "benchmarks.md": report.page(measured),
        "benchmarks.json": json.dumps(numbers, indent=1, ensure_ascii=False) + "\n",
        **plots.plots(numbers),
    }
    for name, text in files.items():
        (directory / name).write_text(text)
        print(f"written: {directory / name}")


class Bench:
    """Runner of cases, one after the other."""

    def __init__(self, cache: Path, *, quick: bool, runs: int) -> None:
        cache.mkdir(parents=True, exist_ok=True)
        self.cache = cache
        self.runs = runs
        self.images = Images(cache, quick=quick)
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if name in {"PATH", "HOME", "LANG", "VIRTUAL_ENV", "TMPDIR"}
        }
        self._connections: dict[Line, int] = {}
        self._compared: set[tuple[str, str]] = set()
        self.dropped = True

    def make_images(self, cases: list[Case]) -> None:
        for name in dict.fromkeys(contender.image for case in cases for contender in case.contenders):
            self.images.get(name)

    def run(self, cases: list[Case], store: results.Store | None) -> list[CaseResult]:
        self.make_images(cases)
        measured = []
        with tempfile.TemporaryDirectory(prefix="run-", dir=self.cache) as directory, ExitStack() as stack:
            work = Path(directory)
            servers: dict[Line, Server | str] = {}
            for line in dict.fromkeys(contender.line for case in cases for contender in case.contenders):
                try:
                    servers[line] = stack.enter_context(Server(self.images.directory, work, line))
                except Unavailable as error:
                    servers[line] = str(error)
            for case in cases:
                print(f"\n== {case.name}: {case.title}", flush=True)
                result = self._case(case, servers, work)
                if store is not None and result.complete:
                    store.save(result)
                measured.append(result)
        return measured

    def _case(self, case: Case, servers: dict[Line, Server | str], work: Path) -> CaseResult:
        runs: dict[str, list[Measurement]] = {contender.label: [] for contender in case.contenders}
        notes = machine.busy()
        active = list(case.contenders)
        for contender in case.contenders:
            absent = missing(WAYS[contender.way])
            server = servers[contender.line]
            if absent or isinstance(server, str):
                notes.append(f"{contender.label}: not measured, {f'no {absent[0]}' if absent else server}")
                active.remove(contender)
        for turn in range(self.runs):
            for contender in tuple(active):
                server = servers[contender.line]
                assert isinstance(server, Server)
                try:
                    measurement = self._once(contender, server, work, first=turn == 0)
                except (RunFailed, SystemExit) as error:
                    notes.append(f"{contender.label}: failed, {' '.join(str(error).split())[-300:]}")
                    print(f"   {contender.label:16} failed: {error}", flush=True)
                    active.remove(contender)
                    runs[contender.label] = []
                    continue
                runs[contender.label].append(measurement)
                print(f"   {contender.label:16} {report.one_run(measurement)}", flush=True)
        lines = {contender.line for contender in case.contenders} - {"full"}
        notes += [f"the line: {server.how}" for line in sorted(lines) if isinstance(server := servers[line], Server)]
        return CaseResult(
            name=case.name,
            case=case,
            runs=runs,
            notes=notes,
            sizes={c.image: self.images.get(c.image).path.stat().st_size for c in case.contenders},
            when=time.strftime("%Y-%m-%d"),
            machine=machine.shape(self.cache, caches_dropped=self.dropped),
        )

    def _once(self, contender: Contender, server: Server, work: Path, *, first: bool) -> Measurement:
        way, image = WAYS[contender.way], self.images.get(contender.image)
        place = work / "task"
        place.mkdir()
        task = Task(
            contender=contender,
            image=image,
            url=server.url(image.path),
            work=place,
            connections=self._connections.get(contender.line, 4),
            checksum=self.images.sha256(image) if contender.checksum else None,
        )
        try:
            if way.prepare is not None:
                way.prepare(task)
            self.dropped = settle()
            warm_programs(way)
            warm(image.path)
            server.traffic()
            beside = way.cpu_beside(task)
            found = measure(
                way.command(task),
                log=place / "log",
                environment=self.environment,
                memory_limit=contender.memory_limit,
                timeout=_TIMEOUT,
            )
            beside = way.cpu_beside(task) - beside
            fetched, connections = server.traffic()
            if contender.way == "ours" and contender.python is None:
                self._connections[contender.line] = connections
            if first and way.makes_disk:
                self._compare(task)
            scratch = outcome(task).get("scratch", 0)
            return dataclasses.replace(found, cpu=found.cpu + beside, fetched=fetched, scratch=int(scratch))
        finally:
            if way.finish is not None:
                way.finish(task)
            shutil.rmtree(place, ignore_errors=True)

    def _compare(self, task: Task) -> None:
        """Check that the result equals the disk byte for byte, once for each way, line and image."""
        key = (f"{task.contender.way} {task.contender.line} {task.contender.memory_limit}", task.image.name)
        if key in self._compared:
            return
        self._compared.add(key)
        command = ["qemu-img", "compare", "-f", "raw", "-F", "raw", str(task.image.raw), str(task.out)]
        place = task.work / "compare.log"
        try:
            measure(command, log=place, environment=self.environment, timeout=_TIMEOUT)
        except RunFailed as error:
            raise RunFailed(f"the result differs from the image: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
