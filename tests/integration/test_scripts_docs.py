"""Tests of the documentation's site: it builds without a warning, and fails if a page is wrong."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def build(checkout, site):
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "mkdocs",
            "build",
            "--strict",
            "--config-file",
            checkout / "mkdocs.yml",
            "--site-dir",
            site,
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


@pytest.fixture
def checkout(tmp_path):
    """Copy the files that the site is built from."""
    copy = tmp_path / "checkout"
    files = subprocess.run(["git", "ls-files", "-z", "docs/", "mkdocs.yml", "scripts", "examples", "charts", "*.md"],
                           cwd=ROOT, capture_output=True, text=True, check=True).stdout  # fmt: skip
    for name in filter(None, files.split("\0")):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            shutil.copyfile(ROOT / name, copy / name)
    return copy


def test_the_script_checks_the_site():
    done = subprocess.run([ROOT / "scripts/docs", "check"], capture_output=True, text=True, check=False, timeout=100)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_the_site_has_the_files_that_pages_link_to(checkout, tmp_path):
    done = build(checkout, tmp_path / "site")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site/explanation/security/index.html").read_text()
    assert 'href="../../repository/THREAT_MODEL/"' in page
    assert (tmp_path / "site/repository/THREAT_MODEL/index.html").is_file()
    assert (tmp_path / "site/repository/examples/s3.yaml").is_file()
    assert 'href="../explanation/architecture/"' in (tmp_path / "site/repository/index.html").read_text()


@pytest.mark.parametrize(
    ("page", "text", "said"),
    [
        ("docs/index.md", "[x](no-such-page.md)", "no-such-page.md"),
        ("docs/index.md", "[x](how-to/install.md#no-such-heading)", "no-such-heading"),
        ("docs/index.md", "[x](../NO_SUCH_FILE.md)", "NO_SUCH_FILE.md"),
        ("docs/index.md", "[x](/absolute.md)", "/absolute.md"),
        ("docs/index.md", "![x](no-such-picture.svg)", "no-such-picture.svg"),
        ("docs/FORGOTTEN.md", "# Forgotten", "FORGOTTEN.md"),
        ("THREAT_MODEL.md", "[x](docs/how-to/install.md#no-such-heading)", "no-such-heading"),
    ],
    ids=["page", "anchor", "file", "absolute", "picture", "not in the navigation", "outside of docs"],
)
def test_a_page_that_is_wrong_fails_the_build(checkout, tmp_path, page, text, said):
    with (checkout / page).open("a") as file:
        file.write(f"\n\n{text}\n")
    done = build(checkout, tmp_path / "site")
    assert done.returncode != 0
    assert said in done.stderr


def test_a_file_from_another_host_fails_the_check(tmp_path):
    """The check is the script's own search, on a site of one page."""
    script = (ROOT / "scripts/docs").read_text()
    function = script[script.index("foreign()") : script.index("\ncase $what in\n    build)")]
    for line, found in {
        '<script src="https://cdn.example.org/x.js"></script>': True,
        '<link href="https://fonts.example.org/x.css" rel="stylesheet">': True,
        '<link rel="stylesheet" href="https://fonts.example.org/x.css">': True,
        '<a href="https://www.mkdocs.org/">MkDocs</a><img src="../x.svg">': False,
    }.items():
        (tmp_path / "index.html").write_text(line)
        done = subprocess.run(
            ["bash", "-c", f"{function}\nforeign {tmp_path}"], capture_output=True, text=True, check=False
        )
        assert bool(done.stdout) is found, line
