"""The fixture `nginx`: the real server with a generated configuration, on free ports, for the whole session.

def test_x(nginx):
    nginx.put("disk.qcow2", data)
    nginx.url("disk.qcow2")              # with ranges
    nginx.url("disk.qcow2", "plain")     # without ranges: it answers 200 with everything
    nginx.url("disk.qcow2", tls=True)    # trusted by nginx.ca_dir
    nginx.url("disk.qcow2", "private")   # basic auth, nginx.user and nginx.password
    nginx.url("disk.qcow2", "headed")    # only with the headers X-Image: os and X-Token: hush
    nginx.url("disk.qcow2", "moved")     # 302 to the first
    nginx.url("disk.qcow2", "slow")      # 1 MiB/s
    nginx.url("disk.qcow2", "gzipped")   # compressed on the fly for every client
    nginx.url("disk.qcow2", "chunked")   # no length, no ranges
    nginx.url("disk.qcow2", "closed")    # no length, no ranges, no chunks
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

_CONFIGURATION = """
daemon off;
master_process off;
worker_processes 1;
pid {base}/pid;
error_log {base}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log {base}/access.log;
    client_body_temp_path {base}/t1; proxy_temp_path {base}/t2; fastcgi_temp_path {base}/t3;
    uwsgi_temp_path {base}/t4; scgi_temp_path {base}/t5;
    default_type application/octet-stream;
    types {{ text/html html; application/gzip gz; }}
    sendfile on;
    keepalive_requests 100000;
    map "$http_x_image:$http_x_token" $headed {{ default 0; "os:hush" 1; }}
    server {{
        listen {host}:{port};
        listen {host}:{tls_port} ssl;
        ssl_certificate {base}/server.pem;
        ssl_certificate_key {base}/server.key;
        root {root};
        location /plain/ {{ alias {root}/; max_ranges 0; }}
        location /private/ {{ alias {root}/; auth_basic "images"; auth_basic_user_file {base}/htpasswd; }}
        location /headed/ {{ alias {root}/; if ($headed = 0) {{ return 403; }} }}
        location /moved/ {{ rewrite ^/moved/(.*)$ /$1 redirect; }}
        location /slow/ {{ alias {root}/; limit_rate 1m; }}
        location /gzipped/ {{ alias {root}/; gunzip off; gzip on; gzip_types *; gzip_min_length 0;
                              gzip_http_version 1.0; gzip_proxied any; }}
        location /chunked/ {{ proxy_pass http://{host}:{port}/raw-chunked/; proxy_set_header Range ""; }}
        location /closed/ {{ proxy_pass http://{host}:{port}/raw-chunked/; proxy_set_header Range "";
                             chunked_transfer_encoding off; }}
        location /raw-chunked/ {{ alias {root}/; max_ranges 0; ssi on; ssi_types *; ssi_last_modified on; }}
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class Nginx:
    """A running nginx: its addresses, and the directory that it serves."""

    root: Path
    port: int
    tls_port: int
    ca_dir: Path
    host: str = "127.0.0.1"
    user: str = "importer"
    password: str = "pässword"

    def put(self, name: str, data: bytes) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def url(self, name: str, way: str = "", *, tls: bool = False) -> str:
        name_of_tls = "localhost" if self.host == "127.0.0.1" else self.host
        origin = f"https://{name_of_tls}:{self.tls_port}" if tls else f"http://{self.host}:{self.port}"
        return f"{origin}/{way}/{name}" if way else f"{origin}/{name}"


def _free_port(host: str) -> int:
    with socket.create_server((host, 0)) as sock:
        return int(sock.getsockname()[1])


@pytest.fixture(scope="session")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    with running_nginx(tmp_path_factory.mktemp("nginx")) as server:
        yield server


@contextlib.contextmanager
def running_nginx(base: Path, host: str = "127.0.0.1") -> Iterator[Nginx]:
    """Run an nginx on an address of this machine with its files below `base`."""
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    if not os.access(program, os.X_OK):
        pytest.fail("nginx is not installed")
    root, ca_dir = base / "root", base / "ca"
    root.mkdir()
    ca_dir.mkdir()
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(ca_dir / "any-name-at-all"))
    certificate = ca.issue_cert("localhost", host)
    for pem in certificate.cert_chain_pems:
        pem.write_to_path(str(base / "server.pem"), append=True)
    certificate.private_key_pem.write_to_path(str(base / "server.key"))
    server = Nginx(root=root, port=_free_port(host), tls_port=_free_port(host), ca_dir=ca_dir, host=host)
    (base / "htpasswd").write_text(f"{server.user}:{{PLAIN}}{server.password}\n")
    configuration = base / "nginx.conf"
    configuration.write_text(
        _CONFIGURATION.format(base=base, root=root, host=host, port=server.port, tls_port=server.tls_port)
        + ("user root;\n" if os.geteuid() == 0 else "")
    )
    with subprocess.Popen([program, "-p", str(base), "-c", str(configuration)], stderr=subprocess.PIPE) as process:
        try:
            _wait(process, server)
            yield server
        finally:
            process.terminate()


def _wait(process: subprocess.Popen[bytes], server: Nginx) -> None:
    for _ in range(500):
        if process.poll() is not None:
            assert process.stderr is not None
            pytest.fail(f"nginx did not start: {process.stderr.read().decode()}")
        try:
            socket.create_connection((server.host, server.port), timeout=1).close()
        except OSError:
            time.sleep(0.01)
        else:
            return
    pytest.fail("nginx does not listen")
