"""Tests of the secret path of the webhooks: created once, renewed in time, and every published value is accepted."""

import asyncio
import base64
import datetime as dt
import json

import pytest

from cdi.api.kinds import SECRETS
from cdi.kube.pki import CERTIFICATE_LIFETIME
from cdi.server.webhook_path import KEY, OVERLAP, SETTLED, PathSecret, PathSecrets, ensure_words
from tests.unit.kube.test_certificates import Api

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
SECOND, MINUTE, HOUR = dt.timedelta(seconds=1), dt.timedelta(minutes=1), dt.timedelta(hours=1)
SECRET = "cdi-apiserver-webhook-path"


async def look(api, now, known=None):
    return await ensure_words(api, "cdi", SECRET, CERTIFICATE_LIFETIME, now, known or PathSecrets())


def current(words, now):
    (one,) = words.current(now)
    return one.word


def stored(api):
    return json.loads(base64.b64decode(api.objects[SECRETS.plural, SECRET]["data"][KEY]))["words"]


async def test_replicas_that_begin_at_once_agree():
    api = Api()
    found = await asyncio.gather(*(look(api, NOW) for _ in range(5)))
    assert len({current(one, NOW) for one in found}) == 1
    assert api.writes == [SECRET]
    assert len(current(found[0], NOW)) == 64


async def test_nothing_is_written_until_it_is_time():
    api = Api()
    first = await look(api, NOW)
    assert await look(api, NOW + 11 * HOUR) == first
    assert api.writes == [SECRET]
    assert current(await look(api, NOW + 12 * HOUR + SETTLED), NOW + 12 * HOUR + SETTLED) == current(first, NOW)


async def test_whoever_asks_with_what_they_were_told_is_listened_to_at_every_moment():
    """Two replicas read every 30 seconds, at different times, and API servers learn late of a published path."""
    api, late = Api(), 20 * SECOND
    replicas = [await look(api, NOW), await look(api, NOW)]
    heard = [(NOW, current(replicas[0], NOW))]
    words = set()
    for step in range(3600):
        now = NOW + step * 30 * SECOND
        mine = step % 2
        replicas[mine] = await look(api, now, replicas[mine])
        heard.append((now + late, current(replicas[mine], now)))
        told = [word for since, word in heard if since <= now][-1]
        words.add(told)
        assert all(one.admits(told, now) for one in replicas), now
    assert len(words) == 3  # in thirty hours


async def test_the_one_before_is_good_for_a_while_only():
    api = Api()
    first = await look(api, NOW)
    renewed = NOW + 12 * HOUR
    second = await look(api, renewed)
    old, new = current(first, NOW), second.words[0].word
    assert current(second, renewed + SETTLED - SECOND) == old
    assert current(second, renewed + SETTLED) == new
    assert second.admits(old, renewed + OVERLAP - SECOND)
    assert not second.admits(old, renewed + OVERLAP)
    assert second.admits(new, renewed)
    third = await look(api, renewed + 12 * HOUR)
    assert [one["word"] for one in stored(api)] == [third.words[0].word, new]


async def test_a_secret_that_is_deleted_means_another_word_and_no_refusal():
    api = Api()
    first = await look(api, NOW)
    del api.objects[SECRETS.plural, SECRET]
    later = NOW + HOUR
    second = await look(api, later, first)
    assert current(second, later) == current(first, NOW)
    assert current(second, later + SETTLED) != current(first, NOW)
    # The Secret is deleted once more before the new word is published.
    del api.objects[SECRETS.plural, SECRET]
    third = await look(api, later + MINUTE, second)
    assert third.admits(current(first, NOW), later + MINUTE)
    # A process that has just started knows no earlier word.
    del api.objects[SECRETS.plural, SECRET]
    assert len((await look(api, later)).words) == 1


@pytest.mark.parametrize("shown", ["", "a", "é", "\udc80", "a" * 63, "a" * 65, "A" * 64, "b" * 64])
def test_no_other_word_is_listened_to(shown):
    words = PathSecrets(words=(PathSecret(word="a" * 64, made=NOW.timestamp()),))
    assert words.admits("a" * 64, NOW)
    assert not words.admits(shown, NOW)
    assert not PathSecrets().admits(shown, NOW)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b'{"words": [{"word": "", "made": 0}]}',
        b'{"words": [{"word": "short", "made": 0}]}',
        json.dumps({"words": [{"word": "../" + "a" * 61, "made": 0}]}).encode(),
    ],
)
async def test_what_somebody_put_there_by_hand_is_no_way_in(text):
    api = Api()
    await look(api, NOW)
    api.objects[SECRETS.plural, SECRET]["data"] = {KEY: base64.b64encode(text).decode()}
    words = await look(api, NOW)
    assert len(current(words, NOW)) == 64
    assert not words.admits("", NOW)
    assert not words.admits("short", NOW)


async def test_a_word_of_the_future_does_not_stay_for_ever():
    api = Api()
    await look(api, NOW + 1000 * HOUR)
    words = await look(api, NOW)
    assert words.words[0].made == NOW.timestamp()
