"""Tests of `cdi apiserver` on the command line."""

import pytest
import yaml

from cdi.cli.main import run
from cdi.server.hooks import Installation, webhook_configurations


def printed(capsys, *arguments):
    assert run(["apiserver", "--print-webhooks", *arguments]) == 0
    return list(yaml.safe_load_all(capsys.readouterr().out))


def test_what_is_printed_is_what_is_installed(capsys):
    assert printed(capsys, "-n", "cdi") == webhook_configurations(Installation(namespace="cdi"))


def test_another_installation_has_names_and_objects_of_its_own(capsys):
    options = ("-n", "other", "--prefix=mine", "--watch-namespaces=a, b", "--selector=team=x,stage=")
    expected = Installation(
        namespace="other",
        service="mine-api",
        prefix="mine-api",
        namespaces=("a", "b"),
        object_labels={"team": "x", "stage": ""},
    )
    assert printed(capsys, *options) == webhook_configurations(expected)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--url=http://host"], "not an https:// URL"),
        (["--selector==x"], "not a list of label=value"),
        (["--selector=team"], "not a list of label=value"),
        (["--port=70000"], "--port"),
    ],
)
def test_what_makes_no_sense_is_refused(capsys, options, words):
    assert run(["apiserver", "--print-webhooks", *options]) == 2
    assert words in capsys.readouterr().err
