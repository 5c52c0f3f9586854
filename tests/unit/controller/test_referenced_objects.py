"""Tests of Secrets and ConfigMaps: read by name, for the names of their keys, and again while an object needs them."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

from cdi.api.errors import ClusterForbidden, NotFound
from cdi.api.kinds import SECRETS
from cdi.controller.referenced_objects import MISSING, POLL_MAX, POLL_MIN, ReferencedObjects
from cdi.controller.request import datavolume
from cdi.reconcile.actions import ObjectRef
from tests.unit.controller.objects import body

KEY, OTHER = datavolume("ns", "a"), datavolume("ns", "b")
REF = ObjectRef(kind="Secret", namespace="ns", name="login")


class Client:
    """A fake client with one Secret, or none."""

    def __init__(self, secret=None) -> None:
        self.secret = secret
        self.gets = 0

    async def get(self, resource, namespace, name):
        assert (resource, namespace, name) == (SECRETS, "ns", "login")
        self.gets += 1
        if self.secret is None:
            raise NotFound("no")
        return self.secret


class Forbidden:
    async def get(self, *_):
        raise ClusterForbidden("secrets is forbidden")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def secret(**data: str):
    return body(SECRETS, "login", data=data)


def made(client) -> tuple[ReferencedObjects, Clock]:
    clock = Clock()
    return ReferencedObjects(client, clock=clock), clock


def ask(inputs: ReferencedObjects, key=KEY):
    with inputs.track(key):
        return inputs.get(REF)


async def looked(inputs: ReferencedObjects, key=KEY) -> bool:
    """Read the input as a reconcile does."""
    ask(inputs, key)
    return await inputs.read(key)


async def test_it_is_read_once_for_the_names_of_its_keys() -> None:
    client = Client(secret(user="aHVzaA=="))
    inputs, _ = made(client)
    assert ask(inputs) is None
    assert await inputs.read(KEY)
    found = ask(inputs)
    assert found is not None
    assert found.keys == {"user"}
    assert "aHVzaA" not in repr(found) + json.dumps(str(vars(inputs)))
    assert not await inputs.read(KEY)
    assert not await looked(inputs, OTHER)
    assert ask(inputs, OTHER) == found
    assert client.gets == 1


async def test_one_that_is_missing_is_looked_at_soon_and_then_rarely() -> None:
    client = Client()
    inputs, clock = made(client)
    await looked(inputs)
    assert ask(inputs) is None
    pauses = []
    for _ in range(13):
        pause = inputs.pause(KEY)
        assert pause is not None
        pauses.append(pause)
        clock.now += pause
        assert not await looked(inputs)
    assert client.gets == 14
    assert pauses[0] == MISSING
    assert all(later <= earlier * 1.5 for earlier, later in pairwise(pauses))
    assert pauses == sorted(pauses)
    assert pauses[-1] == POLL_MAX


@pytest.mark.parametrize("before", [None, secret(other="x")], ids=["made", "completed"])
async def test_what_came_is_found_when_it_is_due(before) -> None:
    client = Client(before)
    inputs, clock = made(client)
    await looked(inputs)
    client.secret = secret(user="x")
    assert not await looked(inputs)
    clock.now += POLL_MIN
    assert await looked(inputs)
    found = ask(inputs)
    assert found is not None
    assert found.keys == {"user"}
    assert inputs.pause(KEY) == POLL_MIN


async def test_all_who_wait_for_the_same_hear_of_it_at_the_first_look() -> None:
    client, clock, told = Client(), Clock(), []
    inputs = ReferencedObjects(client, on_change=told.append, clock=clock)  # type: ignore[arg-type]
    await looked(inputs)
    await looked(inputs, OTHER)
    clock.now += MISSING
    await looked(inputs)
    assert not told  # it is still missing
    client.secret = secret(user="x")
    clock.now += POLL_MAX
    assert await looked(inputs)
    assert told == [OTHER]
    assert ask(inputs, OTHER) is not None
    assert not await inputs.read(OTHER)
    assert client.gets == 3


async def test_one_that_may_not_be_got_says_so_until_it_may() -> None:
    client = Client(secret(user="x"))
    inputs, clock = made(client)
    allowed, client.get = client.get, Forbidden().get  # type: ignore[method-assign]
    await looked(inputs)
    found = ask(inputs)
    assert found is not None and "Try: grant" in found.refused and not found.keys
    client.get = allowed  # type: ignore[method-assign]
    clock.now += POLL_MIN
    assert await looked(inputs)
    found = ask(inputs)
    assert found is not None and found.keys == {"user"} and not found.refused


async def test_who_begins_to_wait_does_not_inherit_the_patience_of_others() -> None:
    client = Client()
    inputs, clock = made(client)
    for _ in range(10):
        await looked(inputs)
        clock.now += POLL_MAX
    await looked(inputs)
    clock.now += POLL_MIN
    assert not await looked(inputs)
    client.secret = secret(user="x")
    assert await looked(inputs, OTHER)
    assert ask(inputs, OTHER) is not None


@pytest.mark.parametrize("gone", [False, True])
async def test_what_nobody_uses_any_more_is_forgotten(gone) -> None:
    client = Client(secret(a="x"))
    inputs, _ = made(client)
    await looked(inputs)
    if gone:
        inputs.forget(KEY)
    else:
        with inputs.track(KEY):
            pass
    assert inputs.pause(KEY) is None
    assert not inputs._looks
    client.secret = secret(b="x")
    assert ask(inputs) is None
    await inputs.read(KEY)
    found = ask(inputs)
    assert found is not None
    assert found.keys == {"b"}


async def test_what_another_still_uses_is_kept() -> None:
    client = Client(secret(a="x"))
    inputs, _ = made(client)
    await looked(inputs)
    await looked(inputs, OTHER)
    inputs.forget(KEY)
    assert ask(inputs, OTHER) is not None
    assert client.gets == 1


async def test_one_that_is_not_read_yet_is_due_at_once() -> None:
    inputs, _ = made(Client())
    ask(inputs)
    assert inputs.pause(KEY) == 0


async def test_a_failed_read_is_tried_again() -> None:
    client = Client(secret(a="x"))
    inputs, _ = made(client)
    broken, client.get = client.get, None  # type: ignore[method-assign,assignment]
    ask(inputs)
    with pytest.raises(TypeError):
        await inputs.read(KEY)
    client.get = broken  # type: ignore[method-assign]
    assert await inputs.read(KEY)
