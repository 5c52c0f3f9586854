"""A fixture that runs the fake Google Cloud Storage server (`tests/fakes/gcs_json_api.py`)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes.gcs_json_api import GcsStandin


@pytest.fixture
def gcs_standin(monkeypatch: pytest.MonkeyPatch) -> Iterator[GcsStandin]:
    for name in ("STORAGE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS"):
        monkeypatch.delenv(name, raising=False)
    with GcsStandin() as standin:
        yield standin
