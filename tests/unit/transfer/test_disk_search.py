"""Tests of the search for the disk among layers: the result is what a container of the image sees below /disk."""

import gzip
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdi.api.errors import CdiError, DiskNotInImage, FormatUnsupported, ImageUnsafe, SourceChanged
from cdi.transfer.overlay import MAX_ENTRIES, MAX_LINKABLE, MAX_NAME, Changeset, Overlay
from tests.layers import END, Item, check, directory, file, hardlink, items_of, layer, search, symlink

OLD, NEW = b"the old disk", b"the new disk"
LOWER = layer(directory("disk/"), file("disk/disk.img", OLD))
EMPTY = [END, bytes(10240), b""]


def refused(*layers: bytes) -> str:
    with pytest.raises(DiskNotInImage) as caught:
        search(*layers)
    assert caught.value.where == "image"
    return caught.value.what


class TestLayersWithoutADisk:
    @pytest.mark.parametrize("packed", [bytes, gzip.compress])
    @pytest.mark.parametrize("empty", EMPTY, ids=["1024", "10240", "0"])
    def test_an_empty_layer_above_is_no_disk(self, empty, packed):
        found = search(LOWER, empty, pack=packed)
        assert (found.content, found.layer, found.read) == (OLD, 1, [2, 1])

    @pytest.mark.parametrize("empty", EMPTY, ids=["1024", "10240", "0"])
    def test_an_empty_layer_below_is_no_second_disk(self, empty):
        found = search(empty, LOWER)
        assert (found.content, found.layer, found.surveyed) == (OLD, 2, [1])

    @pytest.mark.parametrize("empty", EMPTY, ids=["1024", "10240", "0"])
    def test_an_image_of_empty_layers_has_no_disk(self, empty):
        assert refused(empty, empty) == "none of the 2 layers has a file below /disk that a container sees"

    def test_a_layer_that_is_no_tar_is_refused_wherever_it_counts(self):
        with pytest.raises(FormatUnsupported, match="not a tar archive"):
            search(LOWER, b"QFI\xfb" + bytes(600))
        with pytest.raises(FormatUnsupported, match="not a tar archive"):
            search(bytes(1024) + b"data", LOWER)


class TestReading:
    def test_the_usual_image_is_read_once(self):
        found = search(LOWER)
        assert (found.read, found.surveyed) == ([1], [])

    def test_lower_layers_are_only_looked_at(self):
        found = search(layer(file("etc/x")), layer(file("usr/y")), LOWER, layer(file("etc/z")))
        assert (found.content, found.layer, found.read, found.surveyed) == (OLD, 3, [4, 3], [2, 1])

    @pytest.mark.parametrize(
        "mask",
        [
            [directory("disk/"), file("disk/.wh..wh..opq")],
            [file(".wh.disk"), directory("disk/")],
            [file(".wh..wh..opq")],
            [symlink("disk", "elsewhere"), directory("disk/")],
        ],
    )
    def test_what_is_masked_is_not_read(self, mask):
        found = search(b"no tar at all", layer(*mask, file("disk/new.img", NEW)))
        assert (found.content, found.layer, found.surveyed) == (NEW, 2, [])

    def test_opaque_over_a_directory_that_no_member_makes_reads_on(self):
        # If a lower layer has /disk as a link, the whiteout applies to the link's target.
        upper = layer(file("disk/.wh..wh..opq"), file("disk/new.img", NEW))
        assert search(LOWER, upper).surveyed == [1]
        assert "symbolic link to 'data' in layer 1" in refused(layer(symlink("disk", "data")), upper)

    def test_a_layer_that_is_another_one_each_time_is_given_up(self):
        twice, once = layer(file("disk/a", OLD), file("disk/a", NEW)), layer(file("disk/a", OLD))
        contents = iter([twice, once, twice, once])
        with pytest.raises(SourceChanged):
            search(lambda: next(contents))


class TestWhiteouts:
    def test_a_deleted_disk_is_none(self):
        assert "layer 2 deletes '/disk/disk.img'" in refused(LOWER, layer(file("disk/.wh.disk.img", b"")))

    @pytest.mark.parametrize("name", [".wh.disk", "./.wh.disk", ".wh..wh..opq"])
    def test_a_deleted_directory_has_none(self, name):
        assert "layer 2 hides" in refused(LOWER, layer(file(name, b"")))

    def test_a_disk_that_takes_the_place_of_a_deleted_one(self):
        found = search(LOWER, layer(file("disk/.wh.disk.img", b""), file("disk/new.img", NEW)))
        assert (found.content, found.layer) == (NEW, 2)

    @pytest.mark.parametrize("whiteout", ["disk/.wh.disk.img", "disk/.wh..wh..opq", ".wh.disk"])
    def test_a_whiteout_hides_nothing_of_its_own_layer(self, whiteout):
        items = [directory("disk/"), file("disk/disk.img", NEW), file(whiteout, b"")]
        assert search(LOWER, layer(*items)).content == NEW

    def test_a_whiteout_in_between_hides_what_is_below_it_only(self):
        assert search(LOWER, layer(file(".wh.disk", b"")), layer(file("disk/new.img", NEW))).content == NEW

    def test_a_whiteout_of_another_name_hides_nothing(self):
        assert search(LOWER, layer(file("disk/.wh.other", b""))).content == OLD

    def test_metadata_of_old_storage_drivers_hides_nothing(self):
        assert search(LOWER, layer(directory(".wh..wh.plnk"), file(".wh..wh.aufs", b""))).content == OLD

    @pytest.mark.parametrize("name", ["disk/.wh.", ".wh..", "disk/.wh..."])
    def test_a_whiteout_of_nothing_is_refused(self, name):
        assert "whiteout without a name" in refused(LOWER, layer(file(name, b"")))


class TestReplacing:
    def test_the_upper_of_two_files_of_one_name_counts(self):
        found = search(LOWER, layer(file("disk/disk.img", NEW)))
        assert (found.content, found.layer) == (NEW, 2)

    def test_the_last_of_two_files_of_one_name_counts(self):
        found = search(layer(file("disk/a", OLD), file("etc/x"), file("./disk/a", NEW)))
        assert (found.content, found.read) == (NEW, [1, 1])

    def test_a_file_that_a_later_member_replaces_is_none(self):
        assert "symbolic link to 'x'" in refused(layer(file("disk/a", OLD), symlink("disk/a", "x")))
        assert "none of the 1 layers" in refused(layer(file("disk/a", OLD), Item("disk/a", "fifo")))

    def test_what_was_read_of_a_replaced_file_leaves_the_layer_below(self):
        found = search(LOWER, layer(file("disk/a", NEW), directory("disk/a")))
        assert (found.content, found.layer, found.read) == (OLD, 1, [2, 2, 1])

    @pytest.mark.parametrize(
        ("upper", "says"),
        [
            ([directory("disk/disk.img"), file("disk/disk.img/x")], "none of the 2 layers"),
            ([symlink("disk/disk.img", "/images/x")], "'/disk/disk.img' is a symbolic link to '/images/x' in layer 2"),
            ([Item("disk/disk.img", "fifo")], "none of the 2 layers"),
            ([symlink("disk", "data")], "/disk is a symbolic link to 'data' in layer 2, not a directory"),
            ([file("disk")], "/disk is a file in layer 2, not a directory"),
            ([hardlink("disk", "etc/x")], "/disk is a hard link to 'etc/x' in layer 2, not a directory"),
        ],
    )
    def test_something_else_in_its_place(self, upper, says):
        assert says in refused(LOWER, layer(*upper))

    def test_a_file_in_the_place_of_a_directory(self):
        lower = layer(directory("disk/disk.img"), file("disk/disk.img/x"))
        assert search(lower, layer(file("disk/disk.img", NEW))).content == NEW

    @pytest.mark.parametrize("lower", [file("disk"), symlink("disk", "data")])
    def test_a_directory_in_the_place_of_something_else(self, lower):
        below = layer(file("disk/hidden.img", OLD))
        assert search(below, layer(lower), layer(directory("disk/"), file("disk/new.img", NEW))).content == NEW

    @pytest.mark.parametrize("lower", [file("disk"), symlink("disk", "data")])
    def test_files_below_something_that_is_no_directory(self, lower):
        assert "upper layers have files below /disk" in refused(layer(lower), layer(file("disk/new.img", NEW)))
        assert "layer 1 has files below /disk" in refused(layer(lower, file("disk/new.img", NEW)))

    def test_files_that_a_link_below_disk_leads_to(self):
        through = layer(file("disk/sub/other.img", NEW))
        assert "below '/disk/sub'" in refused(layer(symlink("disk/sub", "."), file("disk/a", OLD)), through)
        assert "below '/disk/sub'" in refused(layer(symlink("disk/sub", "."), file("disk/sub/other.img", NEW)))

    def test_directories_are_merged_and_hold_no_disks(self):
        found = search(LOWER, layer(directory("disk/"), directory("disk/sub"), file("disk/sub/other", NEW)))
        assert found.content == OLD


class TestTwoDisks:
    def test_of_two_layers(self):
        said = refused(layer(file("disk/a.img", OLD)), layer(file("disk/b.img", NEW)))
        assert "'/disk/a.img' (layer 1), '/disk/b.img' (layer 2)" in said

    def test_of_one_layer(self):
        said = refused(layer(file("disk/a.img", OLD), file("disk/b.img", NEW)), layer(file("etc/x")))
        assert "'/disk/a.img' (layer 1), '/disk/b.img' (layer 1)" in said

    def test_of_many(self):
        said = refused(layer(*(file(f"disk/{n}") for n in range(9))))
        assert "sees 9 files" in said and said.endswith("and 4 more")

    def test_one_of_them_hidden(self):
        layers = [layer(file("disk/a.img", OLD)), layer(file("disk/b.img", NEW)), layer(file("disk/.wh.a.img"))]
        assert search(*layers).content == NEW

    def test_links_are_no_second_disk(self):
        assert search(layer(file("disk/a.img", OLD), symlink("disk/disk.img", "a.img"))).content == OLD


class TestHardLinks:
    def test_to_a_file_elsewhere_in_the_layer(self):
        found = search(layer(file("images/x", OLD), file("etc/y"), hardlink("disk/a", "./images/x")))
        assert (found.content, found.read) == (OLD, [1, 1])

    def test_to_the_file_as_it_was_then(self):
        items = [
            file("images/x", b"first"),
            file("images/x", OLD),
            hardlink("disk/a", "images/x"),
            file("images/x", NEW),
        ]
        assert search(layer(*items)).content == OLD

    def test_to_a_disk_is_a_second_one(self):
        lower = layer(file("disk/a", OLD), hardlink("disk/b", "disk/a"))
        assert "'/disk/a' (layer 1), '/disk/b' (layer 1)" in refused(lower)
        assert search(lower, layer(file("disk/.wh.a"))).content == OLD

    def test_from_elsewhere_to_the_disk(self):
        assert search(layer(file("disk/a", OLD), hardlink("images/x", "disk/a"))).content == OLD

    @pytest.mark.parametrize(
        "items",
        [
            [hardlink("disk/a", "images/x")],
            [symlink("images/x", "y"), hardlink("disk/a", "images/x")],
            [hardlink("disk/a", "images/x"), file("images/x", NEW)],
            [file("images/x", NEW), file("images"), hardlink("disk/a", "images/x")],
            [file("disk/a", NEW), hardlink("disk/a", "disk/a")],
            [file("disk/a", NEW), hardlink("disk/a", "")],
        ],
    )
    def test_to_what_the_layer_does_not_have(self, items):
        assert "/disk/a is a hard link" in refused(layer(file("images/x", OLD)), layer(*items))

    def test_members_beyond_what_is_remembered(self, monkeypatch):
        monkeypatch.setattr("cdi.transfer.overlay.MAX_LINKABLE", 2)
        assert MAX_LINKABLE == 1 << 20
        assert search(layer(file("x", OLD), hardlink("disk/a", "x"))).content == OLD
        assert "is a hard link to 'x'" in refused(layer(file("x", OLD), file("y"), hardlink("disk/a", "x")))


class TestNames:
    @pytest.mark.parametrize("name", ["./disk/a", "/disk/a", "disk//a", "disk/./a", "etc/../disk/a", "../disk/a"])
    def test_are_read_from_the_root(self, name):
        assert search(layer(file(name, OLD)), layer(file("disk/a", NEW))).content == NEW

    @pytest.mark.parametrize("name", ["disks/a", "disk", "Disk/a", "x/disk/a", "disk/a/b"])
    def test_that_are_not_right_below_disk(self, name):
        refused(layer(file(name, OLD)))

    def test_too_long_or_too_many(self):
        changes = Changeset(1)
        with pytest.raises(ImageUnsafe, match="more than 255 bytes"):
            changes.add("disk/" + "x" * (MAX_NAME + 1), "file")
        with pytest.raises(ImageUnsafe, match="more than 1000 names"):
            for number in range(MAX_ENTRIES + 1):
                changes.add(f"disk/.wh.{number}", "file")
        overlay = Overlay()
        with pytest.raises(ImageUnsafe, match="more than 1000 names"):
            for number in range(3):
                changes = Changeset(number)
                for name in range(MAX_ENTRIES // 2):
                    changes.add(f"disk/.wh.{number}-{name}", "file")
                overlay = overlay.over(changes)

    def test_longer_than_any_path(self):
        with pytest.raises(ImageUnsafe, match="a path of more than 4096 characters"):
            search(layer(file("disk/a", OLD), file("x/" * 2048 + "y")))

    def test_of_any_bytes_can_be_printed(self):
        said = refused(layer(file("disk/\udcff\n", OLD), file("disk/\x1b[2J", NEW)))
        assert said.isprintable()


def test_disks_are_as_tars_of_every_kind_have_them():
    import io

    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=form) as made:
            for name, content in (("disk/" + "n" * 90, OLD), ("x" * 90, b"y")):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                made.addfile(info, io.BytesIO(content))
        assert search(out.getvalue()).content == OLD


@settings(max_examples=300)
@given(st.binary(max_size=60), st.sampled_from([bytes, gzip.compress]), st.sampled_from([100, 1 << 16]))
def test_the_disk_that_is_found_is_the_one_that_a_container_has(data, pack, step):
    check(list(items_of(data)), pack=pack, step=step)


def test_a_refusal_without_confirmation_is_none():
    # Without confirmation, a search may stop at the first disk.
    assert search(layer(file("disk/a", OLD)), layer(file("disk/b", NEW)), confirm=False).content == NEW
    with pytest.raises(CdiError):
        search(layer(file("disk/a", OLD)), layer(file("disk/b", NEW)))
