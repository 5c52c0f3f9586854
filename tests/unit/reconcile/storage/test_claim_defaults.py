"""Tests that claims are completed from their storage class."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdi.api.errors import InvalidManifest, StorageClassMissing, StorageProfileIncomplete, TargetUnsuitable
from cdi.api.overhead import required, usable
from cdi.api.quantity import Quantity
from cdi.api.storageprofile import StorageProfile
from cdi.reconcile.settings import ResolvedConfig
from cdi.reconcile.storage.capabilities import ObservedVolume, PropertySet
from cdi.reconcile.storage.claim_defaults import (
    default_claim,
    default_modes,
    default_size,
    is_archive,
    needs_defaults,
    overhead_of,
    storage_defaults,
)
from cdi.reconcile.storage.classes import StorageClass
from cdi.reconcile.types import StorageDefaults

GIB = 1 << 30
RWX_BLOCK = PropertySet(access_modes=("ReadWriteMany",), volume_mode="Block")
RWO_BLOCK = PropertySet(access_modes=("ReadWriteOnce",), volume_mode="Block")
RWO_FILE = PropertySet(access_modes=("ReadWriteOnce",), volume_mode="Filesystem")
FAST = StorageDefaults(storage_class="fast", sets=(RWX_BLOCK, RWO_BLOCK, RWO_FILE), overhead=Fraction(1, 10))


def spec(size: str | None = "1Gi", **fields):
    return fields if size is None else {"resources": {"requests": {"storage": size}}, **fields}


def test_everything_is_filled_from_the_first_set():
    assert default_claim(spec(), FAST) == {
        "resources": {"requests": {"storage": "1Gi"}},
        "accessModes": ["ReadWriteMany"],
        "volumeMode": "Block",
        "storageClassName": "fast",
    }


def test_an_access_mode_chooses_the_volume_mode():
    assert default_claim(spec(accessModes=["ReadWriteOnce"]), FAST)["volumeMode"] == "Block"
    assert default_claim(spec(accessModes=["ReadOnlyMany"]), FAST)["volumeMode"] == "Filesystem"


@pytest.mark.parametrize("word", ["", "FromStorageProfile"])
def test_words_for_nothing_are_filled(word):
    assert default_claim(spec(volumeMode=word), FAST)["volumeMode"] == "Block"


def test_a_volume_mode_chooses_the_access_modes():
    done = default_claim(spec(volumeMode="Filesystem"), FAST)
    assert (done["accessModes"], done["volumeMode"]) == (["ReadWriteOnce"], "Filesystem")


def test_what_is_said_stays():
    given = spec(accessModes=["ReadWriteOncePod"], volumeMode="Filesystem", selector={"matchLabels": {"a": "b"}})
    done = default_claim(given, FAST)
    assert {name: done[name] for name in given if name != "resources"} == {
        name: given[name] for name in given if name != "resources"
    }
    assert given["resources"] == {"requests": {"storage": "1Gi"}}  # the input is not changed


def test_a_file_system_gets_its_share():
    done = default_claim(spec(volumeMode="Filesystem"), FAST)
    assert Quantity.parse(done["resources"]["requests"]["storage"]).bytes == required(GIB, Fraction(1, 10))


def test_other_requests_and_limits_stay():
    given = {"resources": {"requests": {"storage": "1Gi", "x": "1"}, "limits": {"storage": "2Gi"}}}
    done = default_claim(given, StorageDefaults(storage_class="a", sets=(RWO_FILE,)))
    assert done["resources"]["limits"] == {"storage": "2Gi"}
    assert done["resources"]["requests"]["x"] == "1"


@pytest.mark.parametrize(
    ("asked", "least", "mode", "size"),
    [
        ("1Gi", "4Gi", "Block", 4 * GIB),
        ("5Gi", "4Gi", "Block", 5 * GIB),
        ("4Gi", "4Gi", "Block", 4 * GIB),
        ("1Gi", "4Gi", "Filesystem", 4 * GIB),
        ("4Gi", "4Gi", "Filesystem", required(4 * GIB, Fraction(1, 10))),
        ("5Gi", "4Gi", "Filesystem", required(5 * GIB, Fraction(1, 10))),
    ],
)
def test_no_volume_is_smaller_than_the_class_makes_it(asked, least, mode, size):
    given = StorageDefaults(storage_class="a", overhead=Fraction(1, 10), minimum=int(least[0]) * GIB)
    assert default_size(int(asked[0]) * GIB, mode, given) == size


@given(
    size=st.integers(1 << 20, 1 << 45),
    overhead=st.fractions(0, Fraction(999, 1000), max_denominator=1000),
    least=st.integers(0, 1 << 40),
    mode=st.sampled_from(["Block", "Filesystem"]),
)
@settings(max_examples=200)
def test_the_disk_fits_in_every_volume_that_is_made_for_it(size, overhead, least, mode):
    given = StorageDefaults(storage_class="a", overhead=overhead, minimum=least)
    volume = default_size(size, mode, given)
    assert volume >= least
    assert (usable(volume, overhead) if mode == "Filesystem" else volume) >= size


def test_archives_need_a_file_system():
    done = default_claim(spec(), FAST, archive=True)
    assert (done["accessModes"], done["volumeMode"]) == (["ReadWriteOnce"], "Filesystem")
    with pytest.raises(TargetUnsuitable, match="ContentType Archive cannot have block volumeMode"):
        default_claim(spec(volumeMode="Block"), FAST, archive=True)


def test_a_clone_may_leave_out_its_size():
    assert "resources" not in default_claim(spec(None), FAST, sized=False)
    with pytest.raises(InvalidManifest, match="missing storage size"):
        default_claim(spec(None), FAST)


@pytest.mark.parametrize("size", ["1Ki", "0", "-1Gi", "1048575"])
def test_too_small_a_size_is_refused(size):
    with pytest.raises(InvalidManifest, match="at least 1MiB"):
        default_claim(spec(size), FAST)


def test_without_any_class_the_manifest_must_say_how():
    nothing = StorageDefaults(storage_class=None, exists=False)
    with pytest.raises(StorageClassMissing, match="PVC spec is missing accessMode and no storageClass"):
        default_claim(spec(), nothing)
    done = default_claim(spec(accessModes=["ReadWriteOnce"]), nothing)
    assert "storageClassName" not in done
    assert done["volumeMode"] == "Filesystem"


def test_a_class_that_does_not_exist_is_named():
    with pytest.raises(StorageClassMissing, match="StorageClass gone does not exist"):
        default_claim(spec(), StorageDefaults(storage_class="gone", exists=False))


def test_the_empty_class_is_kept():
    none = StorageDefaults(storage_class="", exists=False)
    assert default_claim(spec(accessModes=["ReadWriteOnce"]), none)["storageClassName"] == ""
    with pytest.raises(StorageClassMissing, match="accessModes is missing"):
        default_claim(spec(), none)


def test_a_profile_that_knows_nothing_is_named_with_the_command_that_helps():
    with pytest.raises(StorageProfileIncomplete) as caught:
        default_claim(spec(), StorageDefaults(storage_class="odd"))
    assert "no accessMode specified in StorageProfile odd" in caught.value.message
    assert "kubectl patch storageprofile odd" in caught.value.message


def test_a_profile_without_that_volume_mode_is_told_with_what_it_has():
    with pytest.raises(StorageProfileIncomplete, match="for volumeMode Filesystem") as caught:
        default_modes((), "Filesystem", StorageDefaults(storage_class="odd", sets=(RWX_BLOCK,)))
    # The suggested command must add to the existing sets, not replace them.
    assert '"ReadWriteMany"' in caught.value.message
    assert '"volumeMode":"Filesystem"' in caught.value.message


# --- sources of storage defaults ----------------------------------------------------------------------------------


CONFIG = ResolvedConfig(overhead=Fraction(6, 100), overheads={"fast": Fraction(0)})


def test_an_offer_of_a_class():
    profile = StorageProfile.model_validate({
        "metadata": {"name": "fast", "annotations": {"cdi.kubevirt.io/minimumSupportedPvcSize": "1Gi"}},
        "spec": {"claimPropertySets": [{"accessModes": ["ReadWriteOnce"], "volumeMode": "Block"}]},
    })  # fmt: skip
    klass = StorageClass(name="fast", provisioner="who.example")
    assert storage_defaults(None, klass, profile, CONFIG) == StorageDefaults(
        storage_class="fast", sets=(RWO_BLOCK,), overhead=Fraction(0), minimum=GIB
    )


def test_a_class_whose_profile_is_not_made_yet_is_known_all_the_same():
    klass = StorageClass(name="new", provisioner="topolvm.io")
    assert storage_defaults("new", klass, None, CONFIG).sets == (RWO_BLOCK, RWO_FILE)


def test_volumes_made_by_hand_tell_of_a_class_that_is_only_a_name():
    volumes = (ObservedVolume(access_modes=("ReadWriteOnce",), volume_mode="Block", phase="Available"),)
    found = storage_defaults("manual", None, None, CONFIG, volumes)
    assert (found.exists, found.sets) == (False, (RWO_BLOCK,))
    assert default_claim(spec(), found)["storageClassName"] == "manual"


def test_no_class_at_all():
    assert storage_defaults(None, None, None, CONFIG) == StorageDefaults(storage_class=None, exists=False)
    assert storage_defaults("", None, None, CONFIG) == StorageDefaults(storage_class="", exists=False)


def test_the_overhead_is_that_of_the_class_or_the_usual():
    assert overhead_of("fast", CONFIG) == 0
    assert overhead_of("slow", CONFIG) == Fraction(6, 100)
    assert overhead_of(None, CONFIG) == Fraction(6, 100)


# --- claims not created by this controller ------------------------------------------------------------------------


def test_only_labelled_claims_that_no_controller_made_are_completed():
    labelled = {"metadata": {"labels": {"cdi.kubevirt.io/applyStorageProfile": "true"}}}
    assert needs_defaults(labelled, enabled=True)
    assert not needs_defaults(labelled, enabled=False)
    assert not needs_defaults({"metadata": {}}, enabled=True)
    assert not needs_defaults({"metadata": {"labels": {"cdi.kubevirt.io/applyStorageProfile": "false"}}}, enabled=True)
    ours = {"metadata": {**labelled["metadata"], "annotations": {"cdi.kubevirt.io/storage.createdByController": "yes"}}}
    assert not needs_defaults(ours, enabled=True)


def test_a_claim_says_whether_it_holds_an_archive():
    assert is_archive({"metadata": {"annotations": {"cdi.kubevirt.io/storage.contentType": "archive"}}})
    assert not is_archive({"metadata": {"annotations": {"cdi.kubevirt.io/storage.contentType": "kubevirt"}}})
    assert not is_archive({})
