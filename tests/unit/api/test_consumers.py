"""Tests that the objects of KubeVirt's other clients are accepted."""

import copy

import pytest

from cdi.api.validation import parse_manifest
from tests.unit.api.consumers import CONSUMERS


@pytest.mark.parametrize("who", CONSUMERS)
def test_what_they_write_is_accepted(who):
    parse_manifest(copy.deepcopy(CONSUMERS[who]))
