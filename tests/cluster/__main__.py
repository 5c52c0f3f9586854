"""Command line of the test cluster; see scripts/cluster --help."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time

from tests.cluster import leftovers, lifecycle
from tests.cluster.layout import ClusterError, Layout


def _up(layout: Layout, *, kubevirt: bool) -> int:
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {text}", file=sys.stderr, flush=True)

    if kubevirt:
        from tests.kubevirt import install

        started = install.up(layout, say)
    else:
        started = lifecycle.up(layout, say)
    say("up" if started else "was up already")
    print(f"export KUBECONFIG={layout.kubeconfig}")
    return 0


def _down(layout: Layout) -> int:
    lifecycle.down(layout)
    return 0


def _status(layout: Layout) -> int:
    programs = lifecycle.status(layout)
    if not lifecycle.running(layout):
        left = leftovers.describe(layout)
        print(f"down, but there is still: {', '.join(left)}" if left else "down")
        return 1
    for name, program in programs.items():
        state = f"up {program['seconds']} s" if program["pid"] else "down"
        print(f"{name:24} {state}" + (f", started {program['starts']} times" if program["starts"] > 1 else ""))
    print(f"{'volumes attached':24} {leftovers.volumes(layout)}")
    print(f"{'logs':24} {layout.logs}")
    print(f"{'KUBECONFIG':24} {layout.kubeconfig}")
    return 0 if all(program["pid"] or not program["wanted"] for program in programs.values()) else 1


def _kubeconfig(layout: Layout) -> int:
    if not lifecycle.running(layout):
        raise ClusterError("no test cluster is up")
    print(layout.kubeconfig)
    return 0


def _purge(layout: Layout) -> int:
    lifecycle.down(layout)
    shutil.rmtree(layout.base, ignore_errors=True)
    return 0


def _run(layout: Layout, argv: list[str]) -> int:
    return subprocess.run(lifecycle.inside(layout, *argv), check=False).returncode


def main() -> int:
    """Run one command and report a failure as one line on stderr."""
    parser = argparse.ArgumentParser(prog="scripts/cluster")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    simple = {
        "down": (_down, "take it and its state away; what was built stays"),
        "status": (_status, "how its programs are"),
        "kubeconfig": (_kubeconfig, "print the path of the administrator's kubeconfig"),
        "purge": (_purge, "down, and remove what was built too"),
    }
    text = "bring it up, building what is not built yet; prints how to reach it"
    bring_up = commands.add_parser("up", help=text, description=text)
    bring_up.add_argument("--kubevirt", action="store_true", help="with KubeVirt and this project's chart installed")
    for name, (_, text) in simple.items():
        commands.add_parser(name, help=text, description=text)
    run = commands.add_parser("run", help="run a command inside the node, as its root")
    run.add_argument("argv", nargs=argparse.REMAINDER, metavar="COMMAND [ARGUMENT ...]")
    arguments = parser.parse_args()
    layout = Layout.default()
    try:
        if arguments.command == "run":
            return _run(layout, arguments.argv or ["/bin/bash"])
        if arguments.command == "up":
            return _up(layout, kubevirt=arguments.kubevirt)
        return simple[arguments.command][0](layout)
    except ClusterError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
