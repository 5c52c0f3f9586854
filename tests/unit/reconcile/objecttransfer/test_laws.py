"""Properties of transfers: whatever is killed, late or changed by others, the volume survives, wholly moved or not."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cdi.api.errors import QuotaExceeded
from cdi.api.kinds import CLAIMS, DATA_VOLUMES, NAMESPACES, OBJECT_TRANSFERS, PODS, VOLUMES
from cdi.controller.request import Request, datavolume
from tests.unit.reconcile.objecttransfer.transfer_simulation import HELD, PV, SOURCE, TARGET, Simulation

KINDS = ("PersistentVolumeClaim", "DataVolume")
ELSEWHERE, RENAMED, BOTH = ("b", "disk"), ("a", "other"), ("b", "other")
MOVES = st.lists(st.integers(0, 11), max_size=60)
LIVES = st.lists(st.sampled_from([0, 1, 1, 2, 3, 4]), max_size=12)
WAYS = {
    "moves": st.sampled_from(KINDS),
    "target": st.sampled_from([ELSEWHERE, RENAMED, BOTH]),
    "reclaim": st.sampled_from(["Delete", "Retain"]),
    "forgets": st.booleans(),
    "behind": st.sampled_from([0, 0, 2, 5, 10]),
}


def is_moved(it: Simulation, target=None) -> None:
    """Check that the volume and everything of its claim are at the target."""
    target = target or it.target
    claim, volume = it.claim(target), it.volume
    assert claim["status"] == {"phase": "Bound", "capacity": {"storage": "1Gi"}}
    assert volume["spec"]["claimRef"]["uid"] == claim["metadata"]["uid"]
    assert volume["spec"]["persistentVolumeReclaimPolicy"] == it.before[1]["persistentVolumeReclaimPolicy"]
    assert claim["metadata"]["finalizers"] == [HELD]
    assert claim["metadata"]["labels"] == {"tier": "gold"}
    assert claim["metadata"]["annotations"]["mine"] == "kept"
    assert not {"dataSource", "dataSourceRef"} & claim["spec"].keys()
    assert len(it.api.all(CLAIMS)) == 1
    volumes = it.api.all(DATA_VOLUMES)
    if it.moves == "DataVolume":
        assert [(one["metadata"]["namespace"], one["metadata"]["name"]) for one in volumes] == [target]
        assert volumes[0]["status"]["phase"] == "Succeeded"
        assert claim["metadata"]["ownerReferences"][0]["uid"] == volumes[0]["metadata"]["uid"]
        assert claim["metadata"]["annotations"]["cdi.kubevirt.io/image.digest"] == "sha256:1"
    else:
        assert not volumes
    assert not it.locks()


def is_undone_or_done(it: Simulation) -> None:
    """Check that the transfer no longer exists, and was either completed or rolled back."""
    assert not it.api.all(OBJECT_TRANSFERS)
    if it.claim(SOURCE) is None:
        is_moved(it)
        return
    before, found = list(it.before), it.face()
    for face in (before, found):
        # The controller has annotated a DataVolume's claim meanwhile, which it would have done anyway.
        face[0] = {**face[0], "metadata": {**face[0]["metadata"], "annotations": None}}
    assert found == before
    assert len(it.api.all(CLAIMS)) == 1
    assert not it.locks()


@settings(max_examples=60, deadline=None)
@given(moves_of=MOVES, lives=LIVES, **WAYS)
def test_whoever_is_killed_and_however_late_all_is_seen_it_is_moved(
    moves_of, lives, moves, target, reclaim, forgets, behind
):
    async def run():
        it = Simulation(moves, target=target, reclaim=reclaim, forgets=forgets, behind=behind)
        await it.go(moves_of, lives)
        await it.run()
        assert it.said() == ("Complete", "TransferComplete")
        is_moved(it)
        assert not any(told[:2] == ("ObjectTransfer", "Warning") for told in it.api.told)

    asyncio.run(run())


@settings(max_examples=60, deadline=None)
@given(moves_of=MOVES, after=MOVES, lives=LIVES, **WAYS)
# The target's claim was created just before, and is not in the cache yet.
@example(
    moves_of=[0] * 7, after=[1] * 3, lives=[], moves="PersistentVolumeClaim", target=ELSEWHERE, reclaim="Delete",
    forgets=True, behind=0,
)  # fmt: skip
def test_deleted_at_any_moment_it_is_undone_or_done(moves_of, after, lives, moves, target, reclaim, forgets, behind):
    async def run():
        it = Simulation(moves, target=target, reclaim=reclaim, forgets=forgets, behind=behind)
        await it.go(moves_of, lives)
        it.api.remove(OBJECT_TRANSFERS, "", "t")
        await it.go(after, lives)
        await it.run()
        is_undone_or_done(it)

    asyncio.run(run())


def _pod(it):
    """Start a pod with the source, which runs until everything else is at rest."""
    if it.claim(SOURCE) is not None:
        it.use()
    return lambda: it.api.find(PODS, "a", "vm") and it.api.remove(PODS, "a", "vm")


def _target_deleted(it):
    if it.claim(it.target) is not None:
        it.safe = False
        it.api.remove(CLAIMS, *it.target)


def _source_deleted(it):
    # A user who deletes a claim before anything was moved wants it deleted.
    if it.claim(SOURCE) is not None and it.said()[0] == "Running":
        it.safe = False
        it.api.remove(CLAIMS, *SOURCE)


def _source_forced(it):
    claim = it.claim(SOURCE)
    kept = it.volume["spec"]["persistentVolumeReclaimPolicy"] == "Retain"
    if claim is not None and kept and it.said()[0] == "Running":
        it.safe = False
        it.api.remove(CLAIMS, *SOURCE)
        if it.claim(SOURCE) is not None:
            it.release(SOURCE, *claim["metadata"]["finalizers"])


def _occupied(it):
    claim = it.claim(it.target)
    if claim is not None and it.volume["spec"]["claimRef"]["uid"] != claim["metadata"]["uid"]:
        it.api.remove(CLAIMS, *it.target)
        it.release(it.target, HELD)
    if it.claim(it.target) is None:
        spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
        it.api.add(
            CLAIMS, {"metadata": {"namespace": it.target[0], "name": it.target[1], "annotations": {}}, "spec": spec}
        )
        it.strange = it.claim(it.target)["metadata"]["uid"]


MEDDLING = {
    "pod": _pod,
    "target deleted": _target_deleted,
    "source deleted": _source_deleted,
    "source removed by force": _source_forced,
    "target occupied": _occupied,
}


@settings(max_examples=80, deadline=None)
@given(meddling=st.sampled_from(sorted(MEDDLING)), moves_of=MOVES, after=MOVES, lives=LIVES, **WAYS)
# The source's PVC is deleted between the creation of the target PVC and the change of the reclaim policy.
@example(
    meddling="source deleted", moves_of=[1, 2, 0, 0, 1, 1], after=[8, 0, 0, 0, 8], lives=[], moves="DataVolume",
    target=ELSEWHERE, reclaim="Delete", forgets=True, behind=0,
)  # fmt: skip
# The target's PVC is deleted with the volume; the source's is gone before its watch says so.
@example(
    meddling="target deleted", moves_of=[0] * 14 + [1] + [0] * 7, after=[0] * 13 + [3], lives=[],
    moves="PersistentVolumeClaim", target=("b", "disk"), reclaim="Delete", forgets=False, behind=0,
)  # fmt: skip
def test_whatever_others_do_it_ends_with_a_reason_and_holds_nothing(
    meddling, moves_of, after, lives, moves, target, reclaim, forgets, behind
):
    async def run():
        it = Simulation(moves, target=target, reclaim=reclaim, forgets=forgets, behind=behind)
        await it.go(moves_of, lives)
        ended = MEDDLING[meddling](it)
        await it.go(after, lives)
        await it.run()
        if ended is not None:
            ended()
            await it.run()
        phase, reason = it.said()
        assert phase in ("Complete", "Error", "Running")
        assert reason
        if phase == "Running":
            # Only this case blocks: the source has been given up, and another claim has the target's name.
            assert meddling == "target occupied"
            it.api.remove(CLAIMS, *it.target)
            await it.run()
            assert it.said()[0] == "Complete"
        assert not it.locks()
        if meddling == "pod":
            assert it.said()[0] == "Complete"
        if it.said()[0] == "Complete" and it.safe:
            is_moved(it)
        if it.said()[0] == "Error":
            message = it.status()["conditions"][0]["message"]
            assert "Try: " in message
            kept = it.volume["spec"]["persistentVolumeReclaimPolicy"] == "Retain"
            assert kept or it.claim(SOURCE) is not None

    asyncio.run(run())


@settings(max_examples=30, deadline=None)
@given(
    places=st.sampled_from([(ELSEWHERE, BOTH), (RENAMED, BOTH)]), moves_of=MOVES, lives=LIVES, moves=st.sampled_from(KINDS),
    forgets=st.booleans(),
)  # fmt: skip
def test_of_two_that_move_the_same_one_does(places, moves_of, lives, moves, forgets):
    async def run():
        it = Simulation(moves, target=places[0], forgets=forgets)
        it.transfer("u", kind=moves, target=places[1])
        await it.go(moves_of, lives)
        await it.run()
        said = {name: it.said(name) for name in ("t", "u")}
        assert sorted(said.values()) == [("Complete", "TransferComplete"), ("Pending", "NoSource")]
        is_moved(it, places[0] if said["t"][0] == "Complete" else places[1])

    asyncio.run(run())


@settings(max_examples=60, deadline=None)
@given(
    moves_of=MOVES,
    lives=LIVES,
    moves=st.sampled_from(KINDS),
    reclaim=st.sampled_from(["Delete", "Retain"]),
    forgets=st.booleans(),
)
def test_one_after_the_other_from_place_to_place(moves_of, lives, moves, reclaim, forgets):
    async def run():
        it = Simulation(moves, target=ELSEWHERE, reclaim=reclaim, forgets=forgets)
        it.transfer("u", kind=moves, source=ELSEWHERE, target=RENAMED)
        await it.go(moves_of, lives)
        await it.run()
        assert it.said("t") == it.said("u") == ("Complete", "TransferComplete")
        is_moved(it, RENAMED)

    asyncio.run(run())


async def test_one_that_takes_it_further_before_the_first_has_ended():
    whole = await Simulation().run()
    for write in range(1, len(whole.api.written) + 1):
        it = Simulation()
        it.transfer("u", source=TARGET, target=RENAMED)
        await it.until(write)
        for _ in range(8):
            for kind in it.untold():
                it.tell(kind)
            it.keys.add(Request(kind="transfer", name="u"))
            await it.work(list(it.keys.now).index(Request(kind="transfer", name="u")))
        await it.run()
        assert it.said("t") == it.said("u") == ("Complete", "TransferComplete")
        is_moved(it, RENAMED)


@settings(max_examples=30, deadline=None)
@given(moves_of=MOVES, lives=LIVES, moves=st.sampled_from(KINDS))
def test_a_namespace_that_is_made_later(moves_of, lives, moves):
    async def run():
        it = Simulation(moves, target=TARGET, namespaces=("a",))
        await it.go(moves_of, lives)
        await it.run()
        phase, reason = it.said()
        assert phase == "Running"
        assert reason.startswith("namespace b does not exist")
        assert "namespace b does not exist. Try: create it" in it.status()["conditions"][0]["message"]
        assert "deletionTimestamp" not in it.claim(SOURCE)["metadata"]
        it.api.add(NAMESPACES, {"metadata": {"name": "b"}})
        await it.run()
        is_moved(it)

    asyncio.run(run())


async def test_a_quota_is_told_as_the_reason_and_the_transfer_ends_once_it_is_raised():
    """KubeVirt's CDI has the API server's text as the reason, which programs search."""
    it = Simulation()
    said = 'persistentvolumeclaims "disk" is forbidden: exceeded quota: q, requested: requests.storage=1Gi'
    it.api.refuse["PersistentVolumeClaim"] = QuotaExceeded(said, where="namespace b")
    await it.run()
    phase, reason = it.said()
    message = it.status()["conditions"][0]["message"]
    assert phase == "Running"
    assert reason.startswith(said)
    assert message.startswith(f"Error: {said}") and "Try: " in message
    assert "deletionTimestamp" not in it.claim(SOURCE)["metadata"]
    it.api.refuse.clear()
    await it.run()
    assert it.said() == ("Complete", "TransferComplete")
    assert it.status()["conditions"][0]["message"] == "Transfer complete"
    is_moved(it)


async def test_a_reason_has_no_more_than_kubernetes_limit():
    it = Simulation()
    it.api.refuse["PersistentVolumeClaim"] = QuotaExceeded("exceeded quota: " + "q" * 5000, where="namespace b")
    await it.run()
    assert len(it.said()[1]) == 1024


async def test_what_is_waited_for_is_told_in_the_words_of_kubevirt_s_cdi():
    it = Simulation("PersistentVolumeClaim")
    it.use()
    it.transfer("u", source=("a", "nowhere"), target=BOTH)
    await it.run()
    for name, reason, words in (("t", "InUse", "Pods using PVC: "), ("u", "NoSource", "No source: ")):
        assert it.said(name) == ("Pending", reason)
        message = it.status(name)["conditions"][0]["message"]
        assert message.startswith(words) and len(message) > len(words)


async def _killed(moves, reclaim, *, meddle=lambda _: None):
    """Yield a simulation killed after each write of the controller.

    Each write is tried with Kubernetes reacting at once and later, and with a new controller that decides before it
    receives the recent changes of volumes.
    """
    whole = await Simulation(moves, reclaim=reclaim).run()
    for write in range(1, len(whole.api.written) + 1):
        for hasty, behind in ((False, 0), (True, 0), (False, 5), (False, 8)):
            it = Simulation(moves, reclaim=reclaim, behind=behind)
            await it.until(write)
            it.api.look()
            meddle(it)
            for _ in range(len(it.keys.now) if behind else 0):
                await it.work()
            await it.run(hasty=hasty)
            yield it


@pytest.mark.parametrize("reclaim", ["Delete", "Retain"])
@pytest.mark.parametrize("moves", KINDS)
async def test_killed_after_any_one_write_it_goes_on(moves, reclaim):
    async for it in _killed(moves, reclaim):
        assert it.said() == ("Complete", "TransferComplete")
        is_moved(it)


@pytest.mark.parametrize("reclaim", ["Delete", "Retain"])
@pytest.mark.parametrize("moves", KINDS)
async def test_killed_after_any_one_write_and_deleted_then_it_is_undone_or_done(moves, reclaim):
    async for it in _killed(moves, reclaim, meddle=lambda it: it.api.remove(OBJECT_TRANSFERS, "", "t")):
        is_undone_or_done(it)


def _force_away(it: Simulation) -> None:
    """Delete the transfer and remove its finalizer, as users do whose namespace stays Terminating."""
    if it.api.remove(OBJECT_TRANSFERS, "", "t") is not None:
        it.api.change(OBJECT_TRANSFERS, "", "t", lambda body: body["metadata"].update(finalizers=[]))


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("moves", KINDS)
async def test_the_finalizers_of_a_transfer_that_was_removed_by_force_are_removed(moves, restarted):
    def meddle(it: Simulation) -> None:
        it.safe = False
        _force_away(it)
        if restarted:
            it.start()

    ends = 0
    async for it in _killed(moves, "Retain", meddle=meddle):
        assert not it.locks()
        ends += 1
    assert ends > 5


async def test_the_finalizer_of_a_transfer_that_is_not_observed_yet_stays():
    it = Simulation()
    await it.until(2)
    assert it.locks()
    # The cache lacks the transfer, as after a start in which PVCs were listed after transfers.
    known = it.life.watches._reflectors[OBJECT_TRANSFERS][None].cache._objects
    left = dict(known)
    known.clear()
    await it.life._reconcilers.reconcile(datavolume(*SOURCE))
    assert it.locks()
    known.update(left)
    await it.run()
    is_moved(it)


@pytest.mark.parametrize("moves", KINDS)
async def test_killed_after_any_one_write_and_its_place_taken_then_nothing_is_lost(moves):
    async for it in _killed(moves, "Delete", meddle=_occupied):
        if it.said()[0] == "Running":
            it.api.remove(CLAIMS, *it.target)
            await it.run()
        assert it.said()[0] in ("Complete", "Error")
        assert (it.said()[0] == "Error") == (it.claim(SOURCE) is not None)
        assert not it.locks()


@pytest.mark.parametrize("seen", ["elsewhere", "never"])
async def test_a_controller_that_is_behind_another_one_does_not_take_the_volume_for_lost(seen):
    it = Simulation("DataVolume")
    it.safe = False
    ref = it.volume["spec"]["claimRef"]
    it.api.change(VOLUMES, "", PV, lambda body: body["spec"].update(claimRef={**ref, "name": "prime", "uid": "prime"}))
    then = len(it.api.log) if seen == "elsewhere" else 0
    it.api.change(VOLUMES, "", PV, lambda body: body["spec"].update(claimRef=ref))
    while it.claim(TARGET) is None:
        await it.until(len(it.api.written) + 1)
    it.first, it.behind = 0, len(it.api.log) - then
    it.start()
    for key in list(it.keys.now):
        it.keys.now = {key: None}
        await it.work()
    assert it.status()["phase"] == "Running"
    assert it.claim(TARGET) is not None
    await it.run()
    assert it.status()["phase"] == "Complete"


async def test_a_transfer_whose_volume_was_deleted_ends_with_an_error():
    it = Simulation()
    it.api.look = lambda: None
    while it.claim(TARGET) is None:
        await it.until(len(it.api.written) + 1)
    del it.api.objects[VOLUMES, "", PV]
    it.first, it.behind = 0, len(it.api.log)
    it.start()
    while it.keys.now:
        await it.work()
    assert it.said() == ("Error", "ClaimLost")
    assert it.claim(TARGET) is None or "deletionTimestamp" in it.claim(TARGET)["metadata"]
