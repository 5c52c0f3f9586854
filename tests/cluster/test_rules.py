"""The alert rules, evaluated by Prometheus itself."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
RULES = ROOT / "charts" / "cdi" / "files" / "rules.yaml"


def promtool(*arguments: str) -> str:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_rules_are_rules():
    assert "24 rules found" in promtool("check", "rules", str(RULES))


@pytest.fixture()
def bare_rules(tmp_path: Path) -> Path:
    """Return the rules without summaries and runbooks, which a test would have to repeat verbatim."""
    document = yaml.safe_load(RULES.read_text())
    for group in document["groups"]:
        for rule in group["rules"]:
            rule.pop("annotations", None)
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_what_fires_and_what_does_not(bare_rules: Path, tmp_path: Path):
    cases = tmp_path / "cases.yaml"
    cases.write_text((Path(__file__).parent / "rules_test.yaml").read_text().replace("[RULES]", f"[{bare_rules}]"))
    assert "SUCCESS" in promtool("test", "rules", str(cases))


def test_every_alert_has_a_case():
    alerts = {
        rule["alert"]
        for group in yaml.safe_load(RULES.read_text())["groups"]
        for rule in group["rules"]
        if "alert" in rule
    }
    cases = yaml.safe_load((Path(__file__).parent / "rules_test.yaml").read_text())["tests"]
    fired = {one["alertname"] for case in cases for one in case["alert_rule_test"] if one["exp_alerts"]}
    silent = {one["alertname"] for case in cases for one in case["alert_rule_test"] if not one["exp_alerts"]}
    assert fired == alerts
    assert silent == alerts
