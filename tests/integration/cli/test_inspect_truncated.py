"""What ``cdi inspect`` and ``cdi explain`` say of an image that is cut short where it lies."""

import json

import pytest

NAME = "data within the file"


def told(cdi, *arguments, status):
    return json.loads(cdi(*arguments, "-o", "json", status=status).stdout)


@pytest.mark.parametrize("name", ["vmdk-sparse", "vdi", "qcow2-subclusters"])
def test_the_check_says_where_the_image_ends(cdi, images, tmp_path, name):
    image = images.get(name)
    checks = {check["name"]: check for check in told(cdi, "inspect", image.path, status=0)["checks"]}
    assert checks[NAME]["passed"]
    cut = tmp_path / "cut"
    cut.write_bytes(image.content[: len(image.content) * 3 // 4])
    for command in ("inspect", "explain"):
        body = told(cdi, command, cut, status=4)
        assert body["refusal"]["code"] == "ContentTruncated"
        assert "it is cut short" in body["refusal"]["message"]
    checks = {check["name"]: check for check in told(cdi, "inspect", cut, status=4)["checks"]}
    assert not checks[NAME]["passed"]
    assert f"of a file of {cut.stat().st_size}: it is cut short" in checks[NAME]["detail"]


def test_an_image_that_is_read_without_qemu_has_the_check_as_well(cdi, images):
    checks = told(cdi, "inspect", images.get("qcow2-zlib").path, status=0)["checks"]
    assert [check["passed"] for check in checks if check["name"] == NAME] == [True]
