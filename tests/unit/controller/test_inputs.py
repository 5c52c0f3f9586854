"""Secrets and ConfigMaps: read once, for the names of their keys, and again when they changed."""

from __future__ import annotations

import pytest

from cdi.api.errors import NotFound
from cdi.controller.inputs import Inputs
from cdi.controller.keys import volume
from cdi.kube.resources import SECRETS
from cdi.reconcile.actions import InputRef
from tests.unit.controller.objects import body

KEY, OTHER = volume("ns", "a"), volume("ns", "b")
REF = InputRef(kind="Secret", namespace="ns", name="login")


class Client:
    def __init__(self, *answers) -> None:
        self.answers = list(answers)
        self.during = lambda: None

    async def get(self, resource, namespace, name):
        assert (resource, namespace, name) == (SECRETS, "ns", "login")
        self.during()
        answer = self.answers.pop(0)
        if answer is None:
            raise NotFound("no")
        return answer


def secret(**data: str):
    return body(SECRETS, "login", data=data)


def ask(inputs: Inputs, key=KEY):
    with inputs.asking(key):
        return inputs.get(REF)


async def test_it_is_read_once_for_the_names_of_its_keys() -> None:
    inputs = Inputs(Client(secret(user="aHVzaA==")))
    assert ask(inputs) is None
    assert await inputs.read(KEY)
    found = ask(inputs)
    assert found is not None
    assert found.keys == {"user"}
    assert not await inputs.read(KEY)
    assert ask(inputs, OTHER) == found


async def test_one_that_is_missing_is_known_to_be_until_it_comes() -> None:
    inputs = Inputs(Client(None, secret(user="x")))
    ask(inputs)
    assert await inputs.read(KEY)
    assert ask(inputs) is None
    assert not await inputs.read(KEY)
    assert inputs.changed(SECRETS, "ns", "login") == {KEY}
    ask(inputs)
    assert await inputs.read(KEY)
    assert ask(inputs) is not None


async def test_a_change_while_it_is_read_is_not_overlooked() -> None:
    client = Client(secret(old="x"), secret(new="x"))
    inputs = Inputs(client)
    ask(inputs)
    client.during = lambda: inputs.changed(SECRETS, "ns", "login")
    await inputs.read(KEY)
    client.during = lambda: None
    ask(inputs)
    assert await inputs.read(KEY)
    found = ask(inputs)
    assert found is not None
    assert found.keys == {"new"}


async def test_what_nobody_uses_any_more_is_forgotten() -> None:
    inputs = Inputs(Client(secret(a="x"), secret(b="x")))
    ask(inputs)
    await inputs.read(KEY)
    with inputs.asking(KEY):
        pass
    assert inputs.changed(SECRETS, "ns", "login") == set()
    assert ask(inputs) is None
    await inputs.read(KEY)
    found = ask(inputs)
    assert found is not None
    assert found.keys == {"b"}


async def test_a_failed_read_is_tried_again() -> None:
    inputs = Inputs(Client())
    ask(inputs)
    with pytest.raises(IndexError):
        await inputs.read(KEY)
    inputs._client.answers.append(secret(a="x"))
    assert await inputs.read(KEY)
