import json
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdi.api.errors import CdiError, InvalidManifest, Retry
from cdi.api.job import (
    BlockTargetSpec,
    Failure,
    FileTargetSpec,
    HttpSourceSpec,
    Job,
    Limits,
    Outcome,
    Policy,
    Progress,
    S3SourceSpec,
)
from cdi.api.overhead import parse_overhead


def test_a_job_comes_back_as_it_was_sent():
    job = Job(
        id="x",
        source=HttpSourceSpec(url="http://host/a", headers=("A: b",)),
        target=BlockTargetSpec(path="/dev/x", known_zero=True),
        size=1 << 30,
        policy=Policy(connections=3, stall_timeout=1.5),
    )
    assert Job.from_json(job.to_json()) == job


def test_the_kind_tells_sources_apart():
    job = Job(id="x", source=S3SourceSpec(url="s3://b/k", region="eu"), target=FileTargetSpec(path="d"))
    assert isinstance(Job.from_json(job.to_json()).source, S3SourceSpec)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda j: j.pop("id"), "id: is missing"),
        (lambda j: j.update(unknown=1), "unknown: is not known"),
        (lambda j: j["source"].update(kind="ftp"), "source.kind: must be one of http"),
        (lambda j: j["source"].pop("kind"), "source.kind: must be one of http"),
        (lambda j: j.update(source=[]), "source.kind: must be one of http"),
        (lambda j: j["source"].update(url=1), "source.url: must be of type string"),
        (lambda j: j.update(size=True), "size: must be of type integer"),
        (lambda j: j.update(size="1"), "size: must be of type integer"),
        (lambda j: j["policy"].update(connections=65), "policy.connections: must be at most 64"),
        (lambda j: j["policy"].update(stall_timeout=0), "policy.stall_timeout: must be greater than 0"),
        (lambda j: j["source"].update(headers="A: b"), "source.headers: must be a list"),
        (lambda j: j["source"].update(headers=["a", 1]), "source.headers[1]: must be of type string"),
        (lambda j: j.update(content_type="x"), "content_type: must be one of kubevirt, archive"),
    ],
)
def test_a_wrong_field_is_named(change, told):
    body = json.loads(Job(id="x", source=HttpSourceSpec(url="u"), target=FileTargetSpec(path="d")).to_json())
    change(body)
    with pytest.raises(InvalidManifest) as caught:
        Job.from_json(json.dumps(body))
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ('"retries": 1%s' % ("0" * 400), "policy.retries: is too large a number"),
        ('"retries": -1%s' % ("0" * 400), "policy.retries: is too large a number"),
        ('"retries": 9223372036854775808', "policy.retries: is too large a number"),
        # Python's JSON parser itself rejects a number this long.
        ('"retries": 1%s' % ("0" * 5000), "not JSON"),
        ('"stall_timeout": 1%s' % ("0" * 400), "policy.stall_timeout: is too large a number"),
        ('"stall_timeout": 1e400', "policy.stall_timeout: is too large a number"),
        ('"stall_timeout": 1e300', "policy.stall_timeout: must be at most 86400"),
        ('"retries": 1e3', "policy.retries: must be of type integer"),
        ('"stall_timeout": NaN', "NaN is not a number"),
        ('"stall_timeout": Infinity', "Infinity is not a number"),
        ('"stall_timeout": -Infinity', "-Infinity is not a number"),
        ('"retries": 1, "retries": 2', "duplicate field 'retries'"),
        ('"keyring": {}1{}'.format("[" * 90_000, "]" * 90_000), "nested more than"),
        ('"keyring": {}1{}'.format("[" * 500, "]" * 500), "nested more than"),
        ('"keyring": {}1{}'.format("[" * 100, "]" * 100), "policy.keyring: must be of type string"),
    ],
)
def test_a_number_that_is_none_is_refused(change, told):
    text = Job(id="x", source=HttpSourceSpec(url="u"), target=FileTargetSpec(path="d")).to_json()
    body = json.loads(text)
    del body["policy"]
    with pytest.raises(InvalidManifest) as caught:
        Job.from_json(json.dumps(body)[:-1] + ', "policy": {' + change + "}}")
    assert told in str(caught.value)


def test_the_largest_numbers_are_read():
    assert Limits.from_json('{"bandwidth": 9223372036854775807}').bandwidth == (1 << 63) - 1
    progress = Progress.from_json('{"phase": "done", "done": 1, "total": null, "rate": 4, "eta": 1e22}')
    assert (progress.rate, progress.eta) == (4.0, 1e22)


@pytest.mark.parametrize("text", [b"\xff", b"\xff\xfe{", b"", b"\x00", "{}\ud800".encode("utf-8", "surrogatepass")])
def test_bytes_that_are_no_text_are_refused(text):
    with pytest.raises(InvalidManifest):
        Job.from_json(text)


def test_all_problems_come_at_once():
    with pytest.raises(InvalidManifest) as caught:
        Job.from_json('{"source": {"kind": "http"}, "target": {"kind": "file", "path": 1}}')
    for told in ("id: is missing", "source.url: is missing", "target.path: must be of type string"):
        assert told in str(caught.value)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda c: st.lists(c) | st.dictionaries(st.text(), c)
    )
)
def test_any_document_is_a_job_or_refused(document):
    with pytest.raises(InvalidManifest):
        Job.from_json(json.dumps(document))


def test_deep_nesting_is_refused():
    with pytest.raises(InvalidManifest):
        Job.from_json("[" * 100_000)


@pytest.mark.parametrize("text", ["0", "0.06", "0.999", "1"])
def test_every_overhead_of_a_class_is_valid_in_a_job(text):
    target = FileTargetSpec(path="/d/disk.img", volume=1 << 30, overhead=int(1000 * parse_overhead(text)))
    job = Job(id="x", source=HttpSourceSpec(url="http://h/x"), target=target)
    assert Job.from_json(job.to_json()) == job


@given(
    st.text(max_size=20_000),
    st.dictionaries(st.text(max_size=100), st.text(max_size=500), max_size=30),
    st.lists(st.text(max_size=2000)),
)
def test_an_outcome_fits_into_a_termination_message(message, labels, warnings):
    outcome = Outcome(
        id="x",
        failure=Failure(code="InternalError", message=message, retry=Retry.NEVER),
        labels=labels,
        warnings=tuple(warnings),
    )
    text = outcome.to_json()
    assert len(text.encode()) <= 4096
    back = Outcome.from_json(text)
    assert back.failure is not None
    assert back.failure.code == "InternalError"
    assert message.startswith(back.failure.message)


@given(
    st.dictionaries(st.text(max_size=100), st.text(max_size=500), max_size=30),
    st.lists(st.text(max_size=2000)),
    st.text(max_size=9000),
    st.lists(st.text(max_size=300), max_size=20),
)
def test_so_does_one_of_a_success(labels, warnings, validator, verified):
    outcome = Outcome(
        id="x", labels=labels, warnings=tuple(warnings), validator=validator, verified_by=tuple(verified), digest="d"
    )
    text = outcome.to_json()
    assert len(text.encode()) <= 4096
    back = Outcome.from_json(text)
    assert (back.failure, back.digest) == (None, "d")
    if len(json.dumps(asdict(outcome), separators=(",", ":"))) <= 4096:
        assert back == outcome


def test_progress_and_limits_come_back():
    progress = Progress(phase="transferring", done=5, total=10, rate=2.5, eta=2.0)
    assert Progress.from_json(progress.to_json()) == progress
    assert progress.fraction == 0.5
    assert Limits.from_json('{"bandwidth": 5}') == Limits(bandwidth=5)


def test_an_error_is_one_line_with_its_remedy():
    error = CdiError("it broke", where="there", remedy="do this")
    assert str(error) == "error[CdiError]: it broke (there). Try: do this"
    assert str(CdiError("it broke")) == "error[CdiError]: it broke."
