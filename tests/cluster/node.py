"""The node: a process tree with its own mounts, network, pids and host name.

    python -m tests.cluster.node

starts it and returns when it accepts orders. Its first process runs this module: it starts the node's programs,
restarts those that end, and reaps orphans. When it is killed, the kernel ends every process of the node and removes its
mounts, interfaces and packet filter rules; only loop devices and control groups remain, and `residue` removes those.

Orders are lines of JSON at a socket, one for each connection: `{"do": "start", "name": …, "argv": […]}`, `{"do": "stop"
| "restart" | "kill", "name": …}`, `{"do": "status"}`.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from tests.cluster.layout import HOST_ADDRESS, LINK_PREFIX, NODE, NODE_ADDRESS, POD_NETWORK, SERVICE_NETWORK, Layout

_MIN_BACKOFF, _MAX_BACKOFF = 0.2, 5.0  # bounds of the restart delay, seconds
_STEADY = 10.0  # seconds that a program has to run for its delay to be reset
_TIMEOUT = 10.0  # seconds for a program to end after SIGTERM
_MAX_COMMAND = 1 << 16  # bytes

# linux/sched.h, sys/mount.h
_NEW_MOUNTS, _NEW_HOSTNAME, _NEW_IPC, _NEW_PROCESSES, _NEW_NETWORK = 1 << 17, 1 << 26, 1 << 27, 1 << 29, 1 << 30
_BIND, _MOVE, _RECURSIVE, _PRIVATE, _SHARED = 1 << 12, 1 << 13, 1 << 14, 1 << 18, 1 << 20

# The kubelet insists on setting these for the whole machine, so it gets files of the node's instead.
_KUBELETS_SETTINGS = (
    "vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes",
)  # fmt: skip

_libc = ctypes.CDLL(None, use_errno=True)


# --- Launch -------------------------------------------------------------------------------------------------------


def launch(layout: Layout) -> None:
    """Start the node; the pid of its first process is written to `pid` in the state directory.

    Raises:
        OSError: The kernel refused a namespace, or the node ended during setup.
        CalledProcessError: The network cannot be set up.
    """
    os.setsid()
    wired_read, wired = os.pipe()
    ready, ready_write = os.pipe()
    number_read, number_write = os.pipe()
    # unshare affects only processes forked afterwards, so an intermediate process keeps this one outside.
    middle = os.fork()
    if middle == 0:
        try:
            if _libc.unshare(_NEW_MOUNTS | _NEW_HOSTNAME | _NEW_IPC | _NEW_PROCESSES | _NEW_NETWORK):
                _fail("namespaces of their own")
            first = os.fork()
        except OSError as error:
            print(f"node: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        if first:
            os.write(number_write, str(first).encode())
            os._exit(0)
        for end in (wired, ready, number_read, number_write):
            os.close(end)
        _first_process(layout, wired_read, ready_write)
    for end in (wired_read, ready_write, number_write):
        os.close(end)
    if os.waitpid(middle, 0)[1]:
        raise OSError("the kernel gives no namespaces")
    first = int(os.read(number_read, 32))
    (layout.node / "pid").write_text(f"{first} {started_at(first)}\n")
    _wire(layout, first)
    os.write(wired, b"w")
    if os.read(ready, 1) != b"o":  # the node accepts orders
        raise OSError("the node ended while it was set up; its log says why")


def started_at(process: int) -> str:
    """Return when a process started, in clock ticks; together with the pid it identifies the process for good.

    Raises:
        OSError: There is no such process.
    """
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]


def _wire(layout: Layout, first: int) -> None:
    """Create the veth pair between this machine and the node, and the routes to its networks."""
    _ip("link", "add", layout.link, "type", "veth", "peer", "name", "eth0", "netns", str(first))
    _ip("address", "add", f"{HOST_ADDRESS}/{LINK_PREFIX}", "dev", layout.link)
    _ip("link", "set", layout.link, "up")
    for network in (POD_NETWORK, SERVICE_NETWORK):
        _ip("route", "add", network, "via", NODE_ADDRESS, "dev", layout.link)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, stdin=subprocess.DEVNULL)


# --- Inside the node ----------------------------------------------------------------------------------------------


def _first_process(layout: Layout, wired: int, ready: int) -> NoReturn:
    try:
        if os.read(wired, 1) != b"w":
            os._exit(1)
        os.close(wired)
        socket.sethostname(NODE)
        _furnish(layout)
        _connect()
        with contextlib.closing(Programs(layout.logs)) as programs, _orders(layout.control) as orders:
            os.write(ready, b"o")
            os.close(ready)
            programs.serve(orders)
    except BaseException as error:  # there is no caller left to report to
        print(f"node: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def _furnish(layout: Layout) -> None:
    """Set up the node's mount namespace so that its programs write below the state directory."""
    _mount("none", "/", flags=_RECURSIVE | _PRIVATE)
    workshop = layout.node / "workshop"
    workshop.mkdir(exist_ok=True)
    data = layout.data
    _veil(Path("/var/lib"), {name: data / name for name in ("kubelet", "containerd", "cni")}, workshop)
    _veil(Path("/var/log"), {"pods": data / "pod-logs", "containers": data / "container-logs"}, workshop)
    _veil(Path("/run"), {"containerd": data / "run"}, workshop)
    _mount("proc", "/proc", "proc")
    for name in _KUBELETS_SETTINGS:
        setting, own = Path("/proc/sys", name), workshop / name.replace("/", ".")
        if setting.exists():
            own.write_text(setting.read_text())
            _mount(own, setting, flags=_BIND)
    # Mount propagation: pods that ask for it see what other pods mount.
    _mount("none", "/", flags=_RECURSIVE | _SHARED)


def _veil(directory: Path, own: dict[str, Path], workshop: Path) -> None:
    """Replace entries of `directory` with the node's own, whether or not they exist outside; keep the others."""
    view = workshop / directory.name
    view.mkdir(exist_ok=True)
    _mount("tmpfs", view, "tmpfs", options="mode=755")
    for entry in os.scandir(directory):
        place = view / entry.name
        if entry.name in own:
            continue
        if entry.is_symlink():
            place.symlink_to(os.readlink(entry.path))
            continue
        if entry.is_dir():
            place.mkdir()
        else:
            place.touch()
        _mount(entry.path, place, flags=_BIND | _RECURSIVE)
    for name, source in own.items():
        source.mkdir(parents=True, exist_ok=True)
        (view / name).mkdir()
        _mount(source, view / name, flags=_BIND)
    _mount(view, directory, flags=_MOVE)


def _connect() -> None:
    _ip("link", "set", "lo", "up")
    _ip("address", "add", f"{NODE_ADDRESS}/{LINK_PREFIX}", "dev", "eth0")
    _ip("link", "set", "eth0", "up")
    _ip("route", "add", "default", "via", HOST_ADDRESS)
    # Bridged traffic between pods must pass NAT like any other, or Services are unreachable.
    for setting in ("net/ipv4/ip_forward", "net/bridge/bridge-nf-call-iptables"):
        Path("/proc/sys", setting).write_text("1")


def _mount(source: str | Path, target: str | Path, kind: str = "", flags: int = 0, options: str = "") -> None:
    if _libc.mount(
        os.fsencode(source), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), options.encode() or None
    ):
        _fail(f"a mount at {target}")


def _fail(what: str) -> NoReturn:
    number = ctypes.get_errno()
    raise OSError(number, f"the kernel refuses {what}: {os.strerror(number)}")


@contextlib.contextmanager
def _orders(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener, _short(path) as name:
        listener.bind(name)
        os.chmod(name, 0o600)
        listener.listen(16)
        yield listener


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """Yield a name for the path that is short enough for a socket address."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


# --- Programs -----------------------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class _Program:
    argv: list[str]
    wanted: bool = True
    pid: int = 0  # 0 if it is not running
    began: float = 0.0
    starts: int = 0
    again: float = 0.0  # when to start it, if it is not running
    pause: float = _MIN_BACKOFF


class Programs:
    """The node's programs by name, and the loop of its first process."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._programs: dict[str, _Program] = {}
        self._bell, ring = socket.socketpair()
        for end in (self._bell, ring):
            end.setblocking(False)
        self._ring = ring
        signal.set_wakeup_fd(ring.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def close(self) -> None:
        signal.set_wakeup_fd(-1)
        self._bell.close()
        self._ring.close()

    def serve(self, orders: socket.socket) -> NoReturn:
        """Keep the programs running and obey orders until the process is killed."""
        with selectors.DefaultSelector() as events:
            events.register(self._bell, selectors.EVENT_READ)
            events.register(orders, selectors.EVENT_READ)
            while True:
                for key, _ in events.select(self._start_due()):
                    if key.fileobj is orders:
                        self._take(orders)
                    else:
                        with contextlib.suppress(BlockingIOError):
                            self._bell.recv(4096)
                self._bury()

    def _start_due(self) -> float | None:
        """Start the programs that are due and return the seconds until the next one is."""
        now = time.monotonic()
        waits = []
        for name, program in self._programs.items():
            if program.wanted and not program.pid:
                if program.again <= now:
                    self._start(name, program)
                else:
                    waits.append(program.again - now)
        return min(waits, default=None)

    def _start(self, name: str, program: _Program) -> None:
        log = str(self._logs / f"{name}.log")
        program.pid = os.posix_spawn(
            program.argv[0],
            program.argv,
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
            setsigmask=(),
            setsigdef=(signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ),
        )
        program.began = time.monotonic()
        program.starts += 1

    def _bury(self) -> None:
        """Reap every ended process: programs, and orphans of containers."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for name, program in self._programs.items():
                if program.pid == pid:
                    now = time.monotonic()
                    program.pid = 0
                    program.pause = (
                        _MIN_BACKOFF if now - program.began > _STEADY else min(program.pause * 2, _MAX_BACKOFF)
                    )
                    program.again = now + program.pause
                    print(f"node: {name} ended with {os.waitstatus_to_exitcode(status)}", file=sys.stderr, flush=True)

    def _take(self, orders: socket.socket) -> None:
        connection, _ = orders.accept()
        with connection, contextlib.suppress(OSError):
            connection.settimeout(_TIMEOUT)
            with connection.makefile("rwb") as stream:
                line = stream.readline(_MAX_COMMAND)
                try:
                    answer = self._do(json.loads(line))
                except (ValueError, KeyError, TypeError, OSError) as error:
                    answer = {"error": f"{type(error).__name__}: {error}"}
                stream.write(json.dumps(answer).encode() + b"\n")

    def _do(self, order: dict[str, Any]) -> dict[str, Any]:
        match order["do"]:
            case "status":
                now = time.monotonic()
                return {
                    name: {
                        "pid": program.pid,
                        "wanted": program.wanted,
                        "starts": program.starts,
                        "seconds": round(now - program.began) if program.pid else 0,
                    }
                    for name, program in self._programs.items()
                }
            case "start":
                program = self._programs.get(order["name"])
                if program is None or program.argv != order["argv"]:
                    if program is not None:
                        self._end(program, signal.SIGTERM)
                    self._programs[order["name"]] = program = _Program(argv=order["argv"])
                program.wanted, program.again, program.pause = True, 0.0, _MIN_BACKOFF
            case "stop":
                program = self._programs[order["name"]]
                program.wanted = False
                self._end(program, signal.SIGTERM)
            case "restart":
                program = self._programs[order["name"]]
                self._end(program, signal.SIGTERM)
                program.wanted, program.again, program.pause = True, 0.0, _MIN_BACKOFF
            case "kill":
                self._end(self._programs[order["name"]], signal.SIGKILL)
            case unknown:
                raise ValueError(f"no such order: {unknown}")
        return {}

    def _end(self, program: _Program, how: signal.Signals) -> None:
        until = time.monotonic() + _TIMEOUT
        while program.pid:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(program.pid, how if time.monotonic() < until else signal.SIGKILL)
            for _ in range(25):
                self._bury()
                if not program.pid:
                    return
                time.sleep(0.02)


# --- Client -------------------------------------------------------------------------------------------------------


def order(layout: Layout, **order: Any) -> dict[str, Any]:
    """Send an order to the node's first process and return its answer.

    Raises:
        OSError: No node answers.
        ValueError: The node failed to carry out the order.
    """
    with socket.socket(socket.AF_UNIX) as connection, _short(layout.control) as name:
        connection.settimeout(4 * _TIMEOUT)
        connection.connect(name)
        with connection.makefile("rwb") as stream:
            stream.write(json.dumps(order).encode() + b"\n")
            stream.flush()
            answer: dict[str, Any] = json.loads(stream.readline())
    if "error" in answer:
        raise ValueError(f"the node does not {order['do']}: {answer['error']}")
    return answer


if __name__ == "__main__":
    try:
        launch(Layout.default())
    except (OSError, subprocess.CalledProcessError) as failure:
        sys.exit(f"node: {failure}")
