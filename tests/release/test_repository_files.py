"""The workflows, templates and notes around the code agree with it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def _read(path: str | Path) -> Any:
    values = yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))
    if isinstance(values, dict) and True in values:  # YAML 1.1 reads `on` as true
        values["on"] = values.pop(True)
    return values


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_has_what_each_needs(workflow: Path) -> None:
    values = _read(workflow)
    assert values.keys() >= {"name", "on", "permissions", "jobs"}
    assert values["permissions"] == {"contents": "read"}
    for name, job in values["jobs"].items():
        assert job["timeout-minutes"] <= 60, name
        assert not set(job.get("needs", "").split()) - values["jobs"].keys(), name
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step), f"{name}: {step}"
            assert "@" in step.get("uses", "@"), f"{name}: {step} names no version"
            # What others choose (titles, branches) must not become part of a shell's text.
            assert "${{" not in step.get("run", ""), f"{name}: {step}"


def test_the_tests_run_on_every_python_that_is_claimed() -> None:
    tested = _read(".github/workflows/test.yml")["jobs"]["test"]["strategy"]["matrix"]["python"]
    claimed = re.findall(r"Python :: (3\.\d+)$", "\n".join(PROJECT["classifiers"]), re.MULTILINE)
    assert tested == ["3.11", "3.12", "3.13", "3.14"]
    assert set(claimed) <= set(tested)
    assert PROJECT["requires-python"] == f">={tested[0]}"


def test_the_workflow_runs_what_the_repository_says_must_pass() -> None:
    steps = _read(".github/workflows/test.yml")["jobs"]["test"]["steps"]
    assert steps[-1]["run"] == ".ci/run"


def test_the_newest_versions_are_tested_every_week() -> None:
    workflow = _read(".github/workflows/test.yml")
    steps = workflow["jobs"]["newest"]["steps"]
    assert "schedule" in workflow["on"]
    assert steps[-1]["run"] == "make tests CONSTRAINTS=/dev/null"
    assert "--constraint $(CONSTRAINTS)" in (ROOT / "Makefile").read_text()


def test_a_release_is_checked_before_it_is_published_without_a_password() -> None:
    workflow = _read(".github/workflows/release.yml")
    build, publish = workflow["jobs"]["build"], workflow["jobs"]["publish"]
    assert workflow["on"] == {"push": {"tags": ["v*"]}}
    commands = [step["run"] for step in build["steps"] if "run" in step]
    assert commands[-1] == 'python tools/release.py --tag "$GITHUB_REF_NAME"'
    assert publish["needs"] == "build"
    assert publish["permissions"] == {"id-token": "write", "attestations": "write", "contents": "read"}
    assert [step["uses"].split("@")[0] for step in publish["steps"]] == [
        "actions/download-artifact",
        "actions/attest-build-provenance",
        "pypa/gh-action-pypi-publish",
    ]
    assert "secrets" not in (ROOT / ".github/workflows/release.yml").read_text()


def test_what_the_release_installs_is_what_the_tests_use() -> None:
    names = re.search(
        r"--constraint constraints.txt (.+)", (ROOT / ".github/workflows/release.yml").read_text()
    )
    assert names is not None
    test = {re.split(r"[>=]", text)[0] for text in PROJECT["optional-dependencies"]["test"]}
    assert set(names[1].split()) <= test


def test_the_hooks_check_with_the_version_that_the_tests_use() -> None:
    ruff = next(repo for repo in _read(".pre-commit-config.yaml")["repos"] if "ruff" in repo["repo"])
    constraints = (ROOT / "constraints.txt").read_text().splitlines()
    assert f"ruff=={ruff['rev'].removeprefix('v')}" in constraints


@pytest.mark.parametrize("form", ["bug", "method"])
def test_an_issue_form_is_one_that_github_takes(form: str) -> None:
    values = _read(f".github/ISSUE_TEMPLATE/{form}.yml")
    assert values.keys() >= {"name", "description", "body"}
    ids = [part["id"] for part in values["body"] if part["type"] != "markdown"]
    assert len(ids) == len(set(ids))
    for part in values["body"]:
        assert part["type"] in {"markdown", "textarea", "input", "checkboxes"}
        assert "value" in part["attributes"] if part["type"] == "markdown" else "label" in part["attributes"]


def test_a_bug_report_asks_what_the_doctor_says() -> None:
    body = _read(".github/ISSUE_TEMPLATE/bug.yml")["body"]
    (doctor,) = [part for part in body if "nlora doctor --json" in part["attributes"].get("label", "")]
    assert doctor["validations"]["required"]


def test_the_citation_has_the_fields_of_its_schema() -> None:
    """Those that the Citation File Format 1.2.0 requires, of the file and of each reference."""
    citation = _read("CITATION.cff")
    assert citation.keys() >= {"authors", "cff-version", "message", "title"}
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] in {"software", "dataset"}
    assert citation["license"] == PROJECT["license"]
    for reference in citation["references"]:
        assert reference.keys() >= {"authors", "title", "type"}
        assert all({"family-names", "given-names"} == author.keys() for author in reference["authors"])
        assert all(identifier.keys() >= {"type", "value"} for identifier in reference["identifiers"])
