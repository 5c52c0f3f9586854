"""Minimal Debian systems in directories: built from packages, cached as archives, with this machine's client settings."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.fresh.cases import Case

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "scripts"))

import debian  # noqa: E402 - after the path is set

PACKAGES = ("ca-certificates", "e2fsprogs", "iproute2", "login", "mount", "passwd", "procps", "sudo", "util-linux")
"""Of a cloud image of Debian, as far as the scripts could notice; the variant brings apt and what is essential."""

NAMESPACES = (
    "unshare", "--mount", "--pid", "--fork", "--kill-child", "--ipc", "--uts", "--propagation", "private", "setsid",
)  # fmt: skip
"""setsid: the command has no controlling terminal to ask for a password at."""

CLIENT_VARIABLES = (
    "PIP_", "SSL_CERT_", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "GOPROXY", "GOSUMDB",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
)  # fmt: skip
"""What tells clients of package registries how they are reached; names or their beginnings."""

PIP_SETTINGS = ("/etc/pip.conf", "~/.config/pip/pip.conf", "~/.pip/pip.conf")
AUTHORITIES = Path("/usr/local/share/ca-certificates")
BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
ENTER = Path(__file__).with_name("enter.py")


def unpack(base: Path, root: Path, case: Case) -> None:
    """Create the case's root: its system, its user, and a clean clone of the checkout's HEAD."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    debian.run("tar", "--extract", f"--file={archive(base, case.suite)}", f"--directory={root}", "--numeric-owner")
    lend_clients(root)
    prepare_user(root, case)
    place = root / case.checkout.lstrip("/")
    debian.run("git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(place))
    if case.user != "root":
        inside(root, "chown", "--recursive", f"{case.user}:", case.home or "/")


def archive(base: Path, suite: str) -> Path:
    """Return the archive of a release's minimal system; build it if it does not exist."""
    made_by = "".join(map(repr, (PACKAGES, suite, debian.sources()))) + Path(debian.__file__).read_text()
    kept = base / f"{suite}-{hashlib.sha256(made_by.encode()).hexdigest()[:12]}.tar"
    with locked(base / f"{suite}.lock"):
        if not kept.exists():
            for old in base.glob(f"{suite}-*.tar"):
                old.unlink()
            unfinished = kept.with_suffix(".new.tar")
            debian.bootstrap(unfinished, PACKAGES, kind="tar", suite=suite)
            unfinished.rename(kept)
    return kept


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock between processes."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def lend_clients(root: Path) -> None:
    """Configure apt and pip in the root to reach their registries as this machine does."""
    for name in ("resolv.conf", "hosts"):
        shutil.copyfile(f"/etc/{name}", root / "etc" / name)
    (root / "etc/apt/apt.conf.d/90host").write_text("".join(f"{line}\n" for line in debian.apt_settings()))
    settings = [path for name in PIP_SETTINGS if (path := Path(name).expanduser()).exists()]
    if settings:
        shutil.copyfile(settings[0], root / "etc/pip.conf")
    if AUTHORITIES.is_dir():
        shutil.copytree(AUTHORITIES, root / str(AUTHORITIES).lstrip("/"), dirs_exist_ok=True)
        inside(root, "update-ca-certificates")


def prepare_user(root: Path, case: Case) -> None:
    """Create the case's user, with its sudo rights."""
    if case.user != "root":
        inside(root, "useradd", "--create-home", f"--home-dir={case.home}", "--shell=/bin/bash", case.user)
    match case.sudo:
        case "freely":
            rule = f"{case.user} ALL=(ALL:ALL) NOPASSWD: ALL\n"
            (root / "etc/sudoers.d/case").write_text(rule)
        case "password":
            (root / "etc/sudoers.d/case").write_text(f"{case.user} ALL=(ALL:ALL) ALL\n")
        case "no":
            (root / "usr/bin/sudo").unlink()


def inside(root: Path, *command: str) -> None:
    """Run a program of the root as its root user."""
    debian.run(*entering(root, "root", "/"), *command)


def entering(root: Path, user: str, directory: str, *, tmpfs: bool = False, offline: bool = False) -> list[str]:
    """Return the prefix of commands that run in the root."""
    options = [option for option, wanted in (("--tmpfs", tmpfs), ("--offline", offline)) if wanted]
    namespaces = [*NAMESPACES[:1], "--net", *NAMESPACES[1:]] if offline else NAMESPACES
    return [*namespaces, sys.executable, "-B", str(ENTER), *options, str(root), user, directory]


def environment(case: Case) -> dict[str, str]:
    """Return the environment of a login with the registries' settings, without paths that the root does not have."""
    programs = ("/usr/local/bin", "/usr/bin", "/bin")
    if case.user == "root":
        programs = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
    variables = {"PATH": ":".join(programs)}
    for name, value in os.environ.items():
        if name.startswith(CLIENT_VARIABLES) and (not value.startswith("/") or Path(value) in (BUNDLE, BUNDLE.parent)):
            variables[name] = value
    if case.home is not None:
        variables["HOME"] = case.home
    if case.cache is not None:
        variables["CDI_CACHE"] = case.cache
    return variables


def untracked(root: Path, case: Case) -> list[str]:
    """Return the files that the case wrote to its checkout, including ignored ones."""
    place = root / case.checkout.lstrip("/")
    listed = subprocess.run(
        ["git", "-c", f"safe.directory={place}", "-C", place, "status", "--porcelain", "--ignored"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    return [shlex.split(line)[-1] for line in listed.splitlines()]
