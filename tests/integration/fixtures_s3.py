"""An S3 service on loopback: moto's server, in a thread of the tests."""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

ACCESS_KEY, SECRET_KEY = "AKIA", "secret"


@dataclass
class S3Server:
    """A running service and a bucket in it."""

    endpoint: str
    client: Any
    """A boto3 client with keys that are allowed everything."""
    bucket: str

    def url(self, key: str) -> str:
        return f"{self.endpoint}/{self.bucket}/{key}"

    def put(self, key: str, content: bytes, **more: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self.client.put_object(Bucket=self.bucket, Key=key, Body=content, **more)
        return answer


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    with running_s3() as endpoint:
        yield endpoint


@contextlib.contextmanager
def running_s3(host: str = "127.0.0.1") -> Iterator[str]:
    """Run the service and yield its URL."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address=host, port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()
        if server._server is not None:
            server._server.server_close()


@pytest.fixture
def no_aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> pytest.MonkeyPatch:
    """Hide this machine's own AWS configuration."""
    import os

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    return monkeypatch


@pytest.fixture
def s3(s3_endpoint: str, no_aws: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """Return the server with a new bucket."""
    with fresh_bucket(s3_endpoint) as server:
        yield server


@contextlib.contextmanager
def fresh_bucket(endpoint: str) -> Iterator[S3Server]:
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
    )
    bucket = f"images-{uuid.uuid4().hex[:12]}"
    client.create_bucket(Bucket=bucket)
    yield S3Server(endpoint, client, bucket)
    client.close()
