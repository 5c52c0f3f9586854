"""Tests of block targets that need no device; the others are in tests/integration/target."""

import errno
import os
import stat

import pytest

from cdi.api.errors import TargetPermission, TargetUnsuitable
from cdi.api.job import BlockTargetSpec
from cdi.target.block import BlockDevice


def test_a_device_of_somebody_else_is_told_with_the_setting_that_hands_it_over(monkeypatch):
    def refused(path, *_):
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(os, "stat", lambda _: os.stat_result((stat.S_IFBLK | 0o660, *range(9))))
    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(TargetPermission, match="Permission denied") as caught:
        BlockDevice(BlockTargetSpec(path="/dev/cdi-block-volume"))
    assert caught.value.where == "/dev/cdi-block-volume"
    assert "device_ownership_from_security_context" in caught.value.remedy


def test_a_file_is_no_device(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TargetUnsuitable, match="not a block device"):
        BlockDevice(BlockTargetSpec(path=str(tmp_path / "file")))
