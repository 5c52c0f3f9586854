from __future__ import annotations

import pytest

from cdi.runtime.home import Home


@pytest.fixture
def home(tmp_path):
    home = Home.find(tmp_path / "home")
    home.make()
    return home
