import json

import pytest

from cdi.api.job import BlankSourceSpec, FileTargetSpec, Job, Progress
from cdi.transfer.control import TransferControl
from cdi.worker.progress import endpoints


@pytest.fixture
def control():
    control = TransferControl(JOB)
    control.meter.total = 300
    control.meter.advance(100)
    return control


JOB = Job(id="1-2", source=BlankSourceSpec(), target=FileTargetSpec(path="/data/disk.img"))


@pytest.mark.parametrize("journal", [None, '{"watermark": 5}'])
def test_progress_and_journal(control, journal):
    answer = endpoints(JOB, control, lambda: journal)["/progress"]()
    assert answer.content_type == "application/json"
    told = json.loads(answer.body)
    progress = Progress.from_json(json.dumps(told["progress"]))
    assert (progress.done, progress.total) == (100, 300)
    assert told == {"progress": told["progress"], "journal": journal}


@pytest.mark.parametrize(
    ("owner", "label"), [(None, "1-2"), ("", "1-2"), ("3-4", "3-4"), ('a"b\\c\nd', 'a\\"b\\\\c\\nd')]
)
def test_the_metric(control, monkeypatch, owner, label):
    if owner is None:
        monkeypatch.delenv("OWNER_UID", raising=False)
    else:
        monkeypatch.setenv("OWNER_UID", owner)
    text = endpoints(JOB, control, lambda: None)["/metrics"]().body.decode()
    assert text.endswith("\n")
    assert text.splitlines() == [
        "# HELP kubevirt_cdi_import_progress_total Progress of the import in percent.",
        "# TYPE kubevirt_cdi_import_progress_total counter",
        f'kubevirt_cdi_import_progress_total{{ownerUID="{label}"}} 33.33',
    ]


def test_without_a_length_the_metric_is_zero(control):
    control.meter.total = None
    assert endpoints(JOB, control, lambda: None)["/metrics"]().body.endswith(b" 0.00\n")


def test_health(control):
    assert endpoints(JOB, control, lambda: None)["/healthz"]().body == b"ok\n"
