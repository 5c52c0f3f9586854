"""Tests of the CEL rules: they refer to existing models and fields, and agree with the offline checks."""

import re

import pytest

from cdi.api.cel.definitions import apply_rules
from cdi.api.cel.expressions import RULES, Rule
from cdi.api.cel.fields import FIELD_RULES
from cdi.api.cel.frozen import freeze
from cdi.api.cel.models import MODEL_RULES
from cdi.api.kinds import KINDS
from cdi.api.schedule import Schedule
from cdi.api.schema import object_schema

DEFINED = {kind.kind: kind for kind in KINDS if kind.defined}


def models():
    """Return the properties of every model in the definitions, by the model's name."""
    found = {}

    def walk(node):
        if "properties" in node and "title" in node:
            found[node["title"]] = set(node["properties"])
        for value in node.values():
            if isinstance(value, dict):
                walk(value)

    for kind in DEFINED.values():
        walk(kind.model.model_json_schema(by_alias=True))
    return found


def rules(node, path=""):
    for rule in node.get(RULES, ()):
        yield path, rule
    for name, part in node.get("properties", {}).items():
        yield from rules(part, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            yield from rules(node[key], f"{path}[]")


def test_no_rule_is_for_something_that_is_not_there():
    there = models()
    assert MODEL_RULES.keys() <= there.keys()
    for model, fields in FIELD_RULES.items():
        assert fields.keys() <= there[model], model


@pytest.mark.parametrize("kind", DEFINED.values(), ids=lambda kind: kind.kind)
def test_a_rule_is_as_the_api_server_wants_it(kind):
    for path, rule in rules(object_schema(kind)):
        assert "\n" not in rule["message"], path
        assert len(rule["message"]) < 2048
        assert rule["rule"].strip()
        assert re.fullmatch(r"(\.[A-Za-z]+)+", rule.get("fieldPath", ".x")), path


def test_what_cannot_change_offline_cannot_change_in_a_cluster():
    for kind in DEFINED.values():
        frozen = [rule for _, rule in rules(object_schema(kind)) if "oldSelf" in rule["rule"]]
        assert bool(frozen) is bool(kind.frozen)
        assert {rule["message"] for rule in frozen} <= {kind.frozen}


def test_freezing_covers_every_field():
    """A field that is added to a model later is frozen as well."""
    schema = {"type": "object", "properties": {
        "text": {"type": "string"}, "needed": {"type": "string"}, "number": {"type": "integer"},
        "list": {"type": "array", "items": {"type": "string"}},
        "map": {"type": "object", "additionalProperties": {"type": "string"}},
        "part": {"type": "object", "properties": {"namespace": {"type": "string"}}},
    }, "required": ["needed"]}  # fmt: skip
    made = freeze(schema, "no")
    (rule,) = made[RULES]
    for name in schema["properties"]:
        assert f"self.{name}" in rule["rule"]
    (inner,) = made["properties"]["part"][RULES]
    assert "self.__namespace__" in inner["rule"]
    assert RULES not in schema


def test_rules_are_added_to_those_that_are_there():
    there = {"type": "object", "properties": {"x": {"type": "string"}}, RULES: [{"rule": "true", "message": "m"}]}
    assert apply_rules("SomethingElse", there) == there
    made = apply_rules("DataSourceSource", there)
    assert len(made[RULES]) == 1 + len(MODEL_RULES["DataSourceSource"])
    assert len(there[RULES]) == 1


def test_a_rule_says_no_more_than_it_has():
    assert Rule(rule="true", message="m").to_dict() == {"rule": "true", "message": "m"}
    assert Rule(rule="true", message="m", field=".a", reason="FieldValueRequired").to_dict() == {
        "rule": "true",
        "message": "m",
        "fieldPath": ".a",
        "reason": "FieldValueRequired",
    }


def test_the_kind_that_cannot_be_transferred_is_named():
    (rule,) = FIELD_RULES["TransferSource"]["kind"][RULES]
    assert rule["messageExpression"].startswith("'Unsupported kind \"' + self + '\"")


def test_only_the_references_of_datasources_may_leave_out_the_namespace():
    written = {model: " ".join(rule.rule for rule in MODEL_RULES[model]) for model in MODEL_RULES}
    assert "self.pvc.__namespace__ != ''" in written["DataVolumeSource"]
    assert "__namespace__" not in written["DataSourceSource"]
    assert not {"SourcePvc", "SourceSnapshot", "DataSourceReference"} & written.keys()


def schedule_rule():
    (rule,) = FIELD_RULES["DataImportCronSpec"]["schedule"][RULES]
    assert rule["message"] == "Illegal cron schedule"
    expression = re.fullmatch(r"self\.matches\('(.*)'\)", rule["rule"])[1]
    return re.compile(expression.replace("^(?i)", "(?i)^").replace("\\\\", "\\"), re.ASCII)


@pytest.mark.parametrize(
    "schedule",
    ["", "* * * * *", "16 12/12 * * *", "59 023 31 DEC 6", " 0,,1-5/2\t? jan-feb,3 ", "@daily", "@every 1h30m",
     "TZ=UTC 0 0 * * *", "CRON_TZ=Europe/Berlin  @weekly", "*/999 0/7 1 1 mon-fri"],
)  # fmt: skip
def test_the_rule_for_schedules_accepts_what_the_parser_accepts(schedule):
    schedule = schedule.replace("? jan", "? * jan").replace(",3 ", ",3 0 ")
    if schedule:
        Schedule.parse(schedule)
    assert schedule_rule().match(schedule)


@pytest.mark.parametrize(
    "schedule",
    ["* * * *", "* * * * * *", "60 * * * *", "* 24 * * *", "* * 32 * *", "* * 0 * *", "* * * 13 *", "* * * * 7",
     "*/0 * * * *", "@reboot", "@every", "@daily x", "* * * sun *", "* * * * *;rm", "-1 * * * *", "TZ=UTC"],
)  # fmt: skip
def test_the_rule_for_schedules_refuses_wrong_syntax(schedule):
    assert not schedule_rule().match(schedule)


@pytest.mark.parametrize(
    ("field", "messages"),
    [
        ("garbageCollect", ["Illegal GarbageCollect value"]),
        ("importsToKeep", ["Illegal ImportsToKeep value"]),
        ("managedDataSource", ["Illegal ManagedDataSource value", "Name cannot be longer than 63 characters"]),
        ("retentionPolicy", []),
    ],
)
def test_rules_of_a_dataimportcron_have_the_messages_of_kubevirt(field, messages):
    schema = object_schema(DEFINED["DataImportCron"])["properties"]["spec"]["properties"][field]
    assert [rule["message"] for rule in schema.get(RULES, [])] == messages
    assert schema.get("minimum", -1) < 0


def test_sources_and_forbidden_fields_of_a_template_have_the_messages_of_kubevirt():
    assert [rule.message for rule in MODEL_RULES["DataImportCronSpec"]] == [
        "Missing source",
        "Unsettable fields: SourceRef, ContentType, Checkpoints, FinalCheckpoint",
    ]


def test_the_metadata_of_a_template_is_pruned():
    template = object_schema(DEFINED["DataImportCron"])["properties"]["spec"]["properties"]["template"]
    assert template["properties"]["metadata"].keys() == {"description", "type"}


def test_the_spec_of_a_dataimportcron_has_no_defaults():
    def walk(node):
        assert "default" not in node
        for value in node.values():
            if isinstance(value, dict):
                walk(value)

    properties = object_schema(DEFINED["DataImportCron"])["properties"]["spec"]["properties"]
    for part in properties.values():
        walk(part)


def test_a_missing_spec_of_a_datavolume_is_reported_by_a_rule_alone():
    schema = object_schema(DEFINED["DataVolume"])
    assert "spec" not in schema.get("required", ())
    assert schema[RULES] == [
        {
            "rule": "has(self.spec)",
            "message": "Missing Data volume source",
            "fieldPath": ".spec",
            "reason": "FieldValueRequired",
        }
    ]
    # Rules of a DataImportCron read its template's spec.
    template = object_schema(DEFINED["DataImportCron"])["properties"]["spec"]["properties"]["template"]
    assert "spec" in template["required"]
