from __future__ import annotations

import io

import pytest

from cdi.api.errors import InvalidManifest, UsageError
from cdi.client import manifests
from cdi.client.manifests import load, parse


def bodies(content):
    return [one.body for one in parse(content, origin="x")]


def test_many_documents_and_none():
    assert bodies(b"a: 1\n---\n---\nb: [2]\n...\n") == [{"a": 1}, {"b": [2]}]
    assert bodies(b"") == []


def test_json_is_yaml():
    assert bodies(b'{"a": [1, {"b": null}]}') == [{"a": [1, {"b": None}]}]


def test_a_byte_order_mark_is_no_content():
    assert bodies(b"\xef\xbb\xbfa: 1") == [{"a": 1}]


def test_aliases_and_merges_are_followed():
    assert bodies(b"a: &x {b: 1}\nc: {<<: *x, d: 2}\n") == [{"a": {"b": 1}, "c": {"b": 1, "d": 2}}]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a: [", "not YAML"),
        (b"a: 1\nb: 2\na: 3", "duplicate key 'a' at line 3"),
        (b"spec: {x: 1, x: 1}", "duplicate key 'x'"),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
        (b"QFI\xfb\x00\x00\x00\x03", "is not UTF-8 text"),
        (b"a: !!python/object/apply:os.system [id]", "could not determine a constructor"),
        (b"? [a]\n: 1", "unhashable"),
        (b"[" * 100_000, "nest"),  # newer versions of libyaml have a limit of their own, which is lower
        (b"- " * 5000, "nested too deeply"),
        (b"{a: " * 65 + b"1" + b"}" * 65, "nested too deeply"),
        (b"a: &a [*a]", "nested too deeply"),
        (b"a: \x00", "not YAML"),
    ],
)
def test_hostile_yaml(content, words):
    with pytest.raises(InvalidManifest) as refused:
        bodies(content)
    assert words in refused.value.message
    assert refused.value.where == "x"


def test_aliases_that_multiply():
    lines = [b"a: &a [1,1,1,1,1,1,1,1]"]
    lines += [b"%c: &%c [%s]" % (i, i, b",".join([b"*%c" % (i - 1)] * 8)) for i in range(98, 110)]
    with pytest.raises(InvalidManifest, match="too many values"):
        bodies(b"\n".join(lines))


def test_a_large_file_is_no_manifest(tmp_path, monkeypatch):
    monkeypatch.setattr(manifests, "MAX_SIZE", 100)
    path = tmp_path / "x.yaml"
    path.write_bytes(b"#" * 101)
    with pytest.raises(InvalidManifest, match="larger than"):
        load([str(path)])


def test_files_directories_globs_and_standard_input_in_their_order(tmp_path):
    (tmp_path / "d" / "deep").mkdir(parents=True)
    for name in ("b.yml", "a.yaml", "c.json", "no.txt", "deep/e.yaml"):
        (tmp_path / "d" / name).write_text(f"name: {name}")
    (tmp_path / "z.yaml").write_text("name: z")
    names = [str(tmp_path / "z.yaml"), "-", str(tmp_path / "d"), str(tmp_path / "d" / "*.y*ml")]
    found = load(names, stdin=io.BytesIO(b"name: stdin"))
    assert [one.body["name"] for one in found] == ["z", "stdin", "a.yaml", "b.yml", "c.json", "a.yaml", "b.yml"]
    assert found[1].origin == "-"
    assert found[2].origin == str(tmp_path / "d" / "a.yaml")
    deep = load([str(tmp_path / "d")], recursive=True)
    assert [one.body["name"] for one in deep] == ["a.yaml", "b.yml", "c.json", "deep/e.yaml"]


@pytest.mark.parametrize("name", ["nope.yaml", "nope*.yaml", "empty"])
def test_a_name_that_means_nothing(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError) as refused:
        load([str(tmp_path / name)])
    assert str(tmp_path) in (refused.value.where or "")


def test_a_file_with_the_characters_of_a_glob(tmp_path):
    (tmp_path / "a[1].yaml").write_text("name: odd")
    assert load([str(tmp_path / "a[1].yaml")])[0].body == {"name": "odd"}


def test_a_date_is_the_string_that_was_written_as_to_kubernetes():
    assert bodies(b"a: 2024-01-01\nb: 2024-01-01 10:00:00\n2024-02-02: c") == [
        {"a": "2024-01-01", "b": "2024-01-01 10:00:00", "2024-02-02": "c"}
    ]


def test_every_document_knows_its_file_and_line(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("# first\n\na: 1\n---\n---\n# third\n- b\n...\n---\nc\n")
    assert [one.place for one in load([str(path)])] == [f"{path}:3", f"{path}:7", f"{path}:10"]
    assert [one.place for one in load(["-"], stdin=io.BytesIO(b"\na: b"))] == ["standard input:2"]
