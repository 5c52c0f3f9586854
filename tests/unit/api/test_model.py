import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdi.api.datavolume import DataVolume
from cdi.api.errors import InvalidManifest, NotFound
from cdi.api.kinds import KINDS, kind_named
from cdi.api.model import Model, unknown_fields, wire_name
from cdi.api.validation import parse
from tests.unit.api.manifests import SOUND, dv, sound


def classes(cls=Model):
    for kind in KINDS:
        assert kind.model
    for child in cls.__subclasses__():
        yield child
        yield from classes(child)


MODELS = [cls for cls in dict.fromkeys(classes()) if cls.__module__.startswith("cdi.api.")]


def test_unknown_fields_are_named_by_their_path():
    document = dv({"http": {"url": "http://h", "checkum": "x"}}, sorce={"a": {"b": 1}})
    document["metadata"]["nmae"] = "y"
    document["status"] = {"conditions": [{"type": "Ready", "status": "True", "since": "z"}]}
    document["extra"] = 1
    assert set(unknown_fields(parse(document))) == {
        "extra",
        "metadata.nmae",
        "spec.sorce",
        "spec.source.http.checkum",
        "status.conditions[0].since",
    }


@pytest.mark.parametrize("which", SOUND)
def test_no_field_of_a_sound_object_is_unknown(which):
    assert list(unknown_fields(parse(sound(which)))) == []


def test_unknown_fields_survive_reading_and_writing():
    document = dv({"http": {"url": "http://h", "new": {"deep": [1, {"x": None}]}}}) | {"other": [1.5, True]}
    assert parse(document).to_dict() == document


def test_null_survives_reading_and_writing():
    document = dv({"http": {"url": "http://h", "secretRef": None}}) | {"status": None}
    document["metadata"]["creationTimestamp"] = None
    assert parse(document).to_dict() == document


def test_pruning_takes_unknown_fields_away_and_nothing_else():
    document = dv({"http": {"url": "http://h", "checkum": "x", "secretRef": None}}, storage={"accessModes": [], "x": 1})
    expected = dv({"http": {"url": "http://h", "secretRef": None}}, storage={"accessModes": []})
    pruned = parse(document).pruned()
    assert pruned.to_dict() == expected
    assert list(unknown_fields(pruned)) == []


def test_the_attributes_of_python_are_no_fields_of_manifests():
    with pytest.raises(InvalidManifest, match="metadata.name"):
        from cdi.api.validation import parse_manifest

        parse_manifest({"apiVersion": "cdi.kubevirt.io/v1beta1", "kind": "DataVolume", "metadata": {}, "spec": {}})
    read = parse(dv({"http": {"url": "http://h", "secret_ref": "x"}}))
    assert read.spec.source.http.secret_ref is None
    assert list(unknown_fields(read)) == ["spec.source.http.secret_ref"]


def test_objects_can_be_made_in_python():
    made = DataVolume.model_validate(
        {"metadata": {"name": "x"}, "spec": {"source_ref": {"kind": "DataSource", "name": "y"}, "storage": {}}}
    )
    assert made.to_dict() == {
        "apiVersion": "cdi.kubevirt.io/v1beta1",
        "kind": "DataVolume",
        "metadata": {"name": "x"},
        "spec": {"sourceRef": {"kind": "DataSource", "name": "y"}, "storage": {}},
    }


@pytest.mark.parametrize("cls", MODELS, ids=lambda cls: cls.__name__)
def test_every_model_and_field_is_described(cls):
    assert cls.__doc__
    cls.model_rebuild()
    for name, field in cls.model_fields.items():
        assert field.description, f"{cls.__name__}.{name}"


@pytest.mark.parametrize(
    ("attribute", "name"),
    [
        ("init_image_url", "initImageURL"),
        ("disk_id", "diskId"),
        ("http_proxy", "HTTPProxy"),
        ("trusted_ca_proxy", "trustedCAProxy"),
        ("upload_proxy_url_override", "uploadProxyURLOverride"),
        ("data_volume_ttl_seconds", "dataVolumeTTLSeconds"),
        ("min_tls_version", "minTLSVersion"),
        ("last_imported_pvc", "lastImportedPVC"),
        ("data_volume_name", "DataVolumeName"),
        ("digest", "Digest"),
        ("global_", "global"),
        ("insecure_skip_verify", "insecureSkipVerify"),
        ("webhook_pvc_rendering", "webhookPvcRendering"),
        ("api_server_replicas", "apiServerReplicas"),
        ("match_label_keys", "matchLabelKeys"),
    ],
)
def test_fields_are_spelt_as_in_the_api(attribute, name):
    assert wire_name(attribute) == name


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("dv", "DataVolume"),
        ("DVS", "DataVolume"),
        ("datavolumes.cdi.kubevirt.io", "DataVolume"),
        ("datavolumes.v1beta1.cdi.kubevirt.io", "DataVolume"),
        ("dv.V1beta1.cdi.kubevirt.io", "DataVolume"),
        ("secrets.v1.", "Secret"),
        ("DataSource", "DataSource"),
        ("das", "DataSource"),
        ("dic", "DataImportCron"),
        ("pvc", "PersistentVolumeClaim"),
        ("cm", "ConfigMap"),
        ("cdi", "CDI"),
        ("utr", "UploadTokenRequest"),
    ],
)
def test_kinds_have_the_names_of_kubectl(word, kind):
    assert kind_named(word).kind == kind


def test_other_words_name_no_kind():
    for word in ("pods", "", "datavolumes.v1.cdi.kubevirt.io", "datavolumes.v1beta1", "secrets.v1beta1."):
        with pytest.raises(NotFound):
            kind_named(word)


@given(st.data())
def test_any_subset_of_known_fields_survives(data):
    source = {"url": "http://h"} | {
        name: data.draw(st.text(max_size=5) | st.none())
        for name in data.draw(st.sets(st.sampled_from(["secretRef", "certConfigMap", "checksum"])))
    }
    document = dv({"http": source})
    assert parse(document).to_dict() == document


def test_a_worker_does_not_pay_for_the_models():
    code = "import sys, cdi.api.job, cdi.api.quantity, cdi.api.names; sys.exit('cdi.api.model' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
