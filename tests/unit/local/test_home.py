from __future__ import annotations

import stat
from pathlib import Path

import pytest

from cdi.api.errors import InvalidManifest, TargetUnsuitable
from cdi.local.home import Home


@pytest.mark.parametrize(
    ("given", "environment", "found"),
    [
        (Path("/x"), {"CDI_HOME": "/y"}, "/x"),
        (None, {"CDI_HOME": "/y", "XDG_DATA_HOME": "/z"}, "/y"),
        (None, {"XDG_DATA_HOME": "/z"}, "/z/cdi"),
        (None, {"XDG_DATA_HOME": "relative"}, str(Path.home() / ".local/share/cdi")),
        (None, {}, str(Path.home() / ".local/share/cdi")),
    ],
)
def test_where_home_is(given, environment, found):
    assert str(Home.find(given, environment).root) == found


def test_directories_are_private(home):
    for path in (home.root, home.objects, home.volumes, home.workers):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_a_place_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(TargetUnsuitable, match="CDI_HOME"):
        Home.find(tmp_path / "file" / "home").make()


def test_volumes_have_the_path_that_is_documented(home):
    assert home.disk("ns", "a") == home.root / "volumes" / "ns" / "a" / "disk.img"
    with pytest.raises(InvalidManifest):
        home.disk("ns", "../a")
