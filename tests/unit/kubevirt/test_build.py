"""Tests of the builds of KubeVirt, which themselves are tested by the cluster that runs them."""

import tarfile
from io import BytesIO

from tests.cluster.layout import Layout
from tests.kubevirt import build


def test_the_check_says_in_one_line_what_is_not_built(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CDI_CACHE", str(tmp_path))
    assert build.main(["--check"]) == 1
    assert capsys.readouterr().out == (
        "not built: KubeVirt's programs, the Debian system for QEMU, the container images\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_missing_where_all_builds_exist(tmp_path):
    layout = Layout(base=tmp_path)
    for path in build._paths(layout).values():
        path.parent.mkdir(parents=True)
        path.touch()
    assert build.missing(layout) == []


def test_the_emulators_user_replaces_another_of_its_number(tmp_path):
    system = tmp_path / "system.tar"
    files = {
        "./etc/passwd": b"root:x:0:0::/root:/bin/sh\nother:x:107:112::/:/bin/false\n",
        "./etc/group": b"root:x:0:\nother:x:107:\n",
    }
    with tarfile.open(system, "w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, BytesIO(content))
    accounts = {name: file.content.decode() for name, file in build._accounts(system).items()}
    assert accounts == {
        "etc/passwd": "root:x:0:0::/root:/bin/sh\nqemu:x:107:107:qemu:/home/qemu:/bin/bash\n",
        "etc/group": "root:x:0:\nqemu:x:107:\n",
    }
