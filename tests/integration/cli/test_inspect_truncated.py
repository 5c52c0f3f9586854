"""Tests of ``cdi inspect`` and ``cdi explain`` with images that are truncated at the source, or may be."""

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
        assert "the file is truncated" in body["refusal"]["message"]
    checks = {check["name"]: check for check in told(cdi, "inspect", cut, status=4)["checks"]}
    assert not checks[NAME]["passed"]
    assert f"of a file of {cut.stat().st_size} bytes: the file is truncated" in checks[NAME]["detail"]


def test_an_image_that_is_read_without_qemu_has_the_check_as_well(cdi, images):
    checks = told(cdi, "inspect", images.get("qcow2-zlib").path, status=0)["checks"]
    assert [check["passed"] for check in checks if check["name"] == NAME] == [True]


def test_a_raw_image_whose_end_nothing_would_show_is_refused_as_by_the_import(cdi, nginx):
    nginx.put("endless.raw", b"x" * 100_000)
    url = nginx.url("endless.raw", "closed")
    for command in ("inspect", "explain"):
        refusal = told(cdi, command, url, status=3)["refusal"]
        assert refusal["code"] == "SourceLengthUnknown"
        assert "Content-Length" in refusal["message"]
    told(cdi, "explain", url, "--checksum", f"sha256:{'0' * 64}", status=0)
    failed = cdi("import", url, "--name", "endless", status=3)
    assert "error[SourceLengthUnknown]" in failed.stderr


def test_the_plan_says_why_a_server_without_validators_is_read_over_one_connection(cdi, fault_server):
    url = fault_server.put("/disk.raw", b"x" * 100_000, etag=None, modified=None)
    plan = told(cdi, "explain", url, status=0)["plan"]
    assert (plan["path"], plan["connections"]) == ("raw-stream", 1)
    assert "ETag or Last-Modified" in plan["why"]
    checked = told(cdi, "explain", url, "--checksum", f"sha256:{'0' * 64}", status=0)["plan"]
    assert checked["path"] == "raw-ranged"
