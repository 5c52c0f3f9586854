"""Installation of the clients for the cluster's tests, where the index does not have them."""

from __future__ import annotations

import pytest

from tests.cluster import client_environment
from tests.cluster.layout import ClusterError, Layout


def test_a_client_that_the_index_lacks_is_named_in_one_line(tmp_path, monkeypatch):
    lock = tmp_path / "requirements.txt"
    lock.write_text(f"absent-client==1.0 \\\n    --hash=sha256:{'0' * 64}\n")
    monkeypatch.setattr(client_environment, "_LOCK", lock)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    layout = Layout(base=tmp_path / "cluster")
    with pytest.raises(ClusterError) as raised:
        client_environment.build(layout)
    message = str(raised.value)
    assert "absent-client==1.0" in message
    assert "scripts/lock --clients" in message
    assert "\n" not in message
    # A later build starts over.
    assert not list(layout.built.glob("clients-*/clients"))
