from __future__ import annotations

import pytest

from cdi.local.home import Home


@pytest.fixture
def home(tmp_path):
    home = Home.find(tmp_path / "home")
    home.make()
    return home
