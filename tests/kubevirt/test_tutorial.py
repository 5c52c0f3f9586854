"""The tutorial on a virtual machine, executed as written; the test logs in where the page says so."""

from __future__ import annotations

import threading

import pytest

from tests.cluster import helm
from tests.cluster.build import keep_go_program
from tests.cluster.layout import SOURCES, Layout
from tests.cluster.walkthrough import environment
from tests.doc_blocks import shell
from tests.kubevirt.console import console

TIMEOUT = 900.0
"""Seconds for the whole lesson, on a busy machine."""


def test_the_lesson_on_a_virtual_machine(kubevirt, namespace, guest, tmp_path, request: pytest.FixtureRequest):
    lesson = shell(request.node.nodeid, tmp_path)
    layout = Layout.default()
    client = helm.Helm(program=helm.build(layout), home=tmp_path / "helm", environment=kubevirt.kubectl.environment)
    lesson.environment = environment(kubevirt, client, namespace, lesson.directory, tmp_path / "user")
    program = tmp_path / "user" / "bin" / "virtctl"
    program.symlink_to(keep_go_program(layout, SOURCES / "virtctl"))
    lesson.replacements = {
        "https://images.example.org/guest.qcow2": guest.url,
        "namespace: default": f"namespace: {namespace.namespace}",
        # The screen is asked for when the login is there; the console is read meanwhile.
        "virtctl vnc": f"until [ -e {tmp_path}/logged-in ]; do sleep 1; done; virtctl vnc",
    }
    seen = []

    def log_in() -> None:
        with console(namespace, "machine-1") as terminal:
            terminal.login(timeout=TIMEOUT)
            seen.append(terminal.run("hostname"))
        (tmp_path / "logged-in").touch()

    reader = threading.Thread(target=log_in, daemon=True)
    reader.start()
    lesson.run(timeout=TIMEOUT)
    reader.join()
    assert seen == ["golden"]
    assert (lesson.directory / "screen.png").read_bytes().startswith(b"\x89PNG")
