"""Tests of the options of ``cdi controller``."""

import pytest

from cdi.cli.controller import command


@pytest.mark.parametrize(("arguments", "image"), [([], "r/cdi:1"), (["--image=r/cdi:2"], "r/cdi:2")])
def test_the_workers_image_is_read_from_where_tools_look_for_it(monkeypatch, arguments, image):
    monkeypatch.setenv("IMPORTER_IMAGE", "r/cdi:1")
    assert command.make_context("controller", arguments).params["image"] == image
