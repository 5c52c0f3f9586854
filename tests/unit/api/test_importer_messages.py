"""Words of KubeVirt's importer in front of our own messages."""

import pytest

from cdi.api import errors
from cdi.api.importer_messages import (
    condition_text,
    image_too_large,
    invalid_format,
    no_image_for_platform,
    termination_text,
    unexpected_status,
    upload_log_text,
    upload_response_text,
)
from cdi.api.job import Failure

OURS = "it failed. Try: again"


def failure(code, upstream=""):
    error = getattr(errors, code)("it failed", remedy="again").with_upstream(upstream)
    return Failure.from_error(error)


@pytest.mark.parametrize(
    ("source", "code", "upstream", "words"),
    [
        ("http", "SourceNotFound", unexpected_status(404, "Not Found"),
         "Unable to connect to http data source: expected status code 200, got 404. Status: 404 Not Found"),
        ("http", "SourceRefused", unexpected_status(499, ""),
         "Unable to connect to http data source: expected status code 200, got 499. Status: 499"),
        ("registry", "PlatformNotFound", no_image_for_platform("absent", "", "linux"),
         'Unable to process data: no image found in image index for architecture "absent", variant "", OS "linux"'),
        ("registry", "DiskNotInImage", "",
         "Unable to process data: Unable to transfer source data to scratch space: Failed to read registry image: "
         "Failed to find VM disk image file in the container image"),
        ("registry", "SourceNotFound", unexpected_status(404, "Not Found"), "Unable to process data: failed to pull image"),
        ("http", "ChecksumMismatch", "", "Unable to process data: checksum validation failed"),
        ("http", "TargetTooSmall", image_too_large(2048, 1024),
         "Unable to process data: Unable to convert source data to target format: virtual image size 2048 is larger "
         "than the reported available storage 1024. A larger PVC is required"),
        ("http", "TargetFull", "",
         "Unable to process data: Unable to convert source data to target format: no space left on device"),
        ("http", "FormatUnsupported", invalid_format("qcow"),
         "Unable to process data: Unable to convert source data to target format: Invalid format qcow for image "
         "/scratch/tmpimage"),
        ("http", "BackingFileRefused", "",
         "Unable to process data: Unable to convert source data to target format: Image /scratch/tmpimage is invalid "
         "because it has invalid backing file"),
        ("http", "ArchiveUnsafe", "",
         "Unable to process data: Unable to transfer source data to target directory: unable to untar files from "
         "endpoint: exit status 2"),
        ("stream", "ImageCorrupt", "", "Saving stream failed"),
    ],
)  # fmt: skip
def test_a_termination_message_begins_with_the_importers_words(source, code, upstream, words):
    assert termination_text(failure(code, upstream), source) == f"{words}: {OURS}"


@pytest.mark.parametrize(
    ("source", "code"), [("http", "WorkerLost"), ("blank", "TargetIo"), ("file", "SourceNotFound"), ("", "TargetFull")]
)
def test_a_failure_that_the_importer_does_not_know_has_only_our_words(source, code):
    assert termination_text(failure(code), source) == OURS


@pytest.mark.parametrize("code", ["TargetTooSmall", "TargetFull"])
@pytest.mark.parametrize("source", ["http", "s3", "registry", "blank", "upload"])
def test_the_condition_of_an_image_that_is_too_large_names_no_sizes(source, code):
    text = condition_text(failure(code, image_too_large(2048, 1024)), source)
    assert text == f"DataVolume too small to contain image: {OURS}"


def test_an_upload_that_is_too_large_is_named_in_the_log_and_to_its_client():
    found = failure("TargetTooSmall")
    words = f"effective image size is larger than the reported available storage: {OURS}"
    assert upload_log_text(found) == f"Saving stream failed: {words}"
    assert upload_response_text(found) == words
    assert upload_response_text(failure("ImageCorrupt")) == OURS


def test_words_of_any_length_and_letters_are_bounded():
    assert failure("PlatformNotFound", "\n\U0001f4a9" + "x" * 5000).upstream == "??" + "x" * 298
