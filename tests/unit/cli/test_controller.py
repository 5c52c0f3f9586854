"""Tests of the options of ``cdi controller``."""

import pytest
from click.testing import CliRunner

from cdi.cli.controller import command


@pytest.mark.parametrize(("arguments", "image"), [([], "r/cdi:1"), (["--image=r/cdi:2"], "r/cdi:2")])
def test_the_workers_image_is_read_from_where_tools_look_for_it(monkeypatch, arguments, image):
    monkeypatch.setenv("IMPORTER_IMAGE", "r/cdi:1")
    assert command.make_context("controller", arguments).params["image"] == image


def test_a_component_is_given_by_its_option_or_by_the_name_that_this_had(monkeypatch):
    given = []

    async def run(_client, options):
        given.append(options)

    monkeypatch.setattr("cdi.kube.client.connect", lambda *_: None)
    monkeypatch.setattr("cdi.cli.controller._run", run)
    done = CliRunner().invoke(command, ["--image=r/cdi:1", "--component=deployment/a", "--part=deployment/b"])
    assert done.exit_code == 0, done.output
    assert [(one.kind, one.name) for one in given[0].components] == [("deployment", "a"), ("deployment", "b")]
    assert "--part" not in CliRunner().invoke(command, ["--help"]).output


@pytest.mark.parametrize(("arguments", "policy"), [([], "Always"), (["--pull-policy=Never"], "Never")])
def test_the_pull_policy_of_workers_is_read_from_the_environment(monkeypatch, arguments, policy):
    monkeypatch.setenv("PULL_POLICY", "Always")
    assert command.make_context("controller", ["--image=r/cdi:1", *arguments]).params["pull_policy"] == policy
