"""Methods from a file next to a configuration and from installed packages; the example is that of docs/methods.md."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers import desk_values, learn
from nlora.config.load import load_config
from nlora.errors import InputErrors
from nlora.methods import _outside
from nlora.methods.contract import _CHECKS
from nlora.methods.registry import build, builtin_names, describe, find, method_names, version_of
from nlora.models.lora_factors import load_factors
from nlora.runs.run_yaml import read_run_file
from nlora.runs.summary import read_summary
from nlora.sweeps.check import check_sweep
from nlora.sweeps.expand import read_sweep

DOC = Path(__file__).parents[2] / "docs" / "methods.md"
METHOD, TEST = re.findall(r"```python\n(.*?)```", DOC.read_text(encoding="utf-8"), flags=re.DOTALL)
[CONFIG] = re.findall(r"```yaml\n([^`]*decay.py[^`]*)```", DOC.read_text(encoding="utf-8"))
Nlora = Callable[..., Any]
TinyModel = Callable[[str], Path]


@pytest.fixture
def project(tmp_path: Path, tiny_model: TinyModel) -> Path:
    """A folder with decay.py and support.yaml, which names it as docs/methods.md does."""
    folder = tmp_path / "project"
    values = desk_values(folder, tiny_model("llama")) | yaml.safe_load(CONFIG)
    (folder / "decay.py").write_text(METHOD)
    (folder / "support.yaml").write_text(yaml.safe_dump(values))
    return folder


def mistake(name: str, **options: Any) -> str:
    with pytest.raises(InputErrors) as caught:
        build(name, options)
    [problem] = caught.value.problems
    assert problem.where == "method.name"
    assert "\n" not in problem.what
    return problem.what


# A file


def test_the_documented_example_passes_its_documented_test(project: Path) -> None:
    (project / "test_decay.py").write_text(TEST)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_decay.py"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert f"{len(_CHECKS)} passed" in done.stdout


def test_every_command_knows_the_method_of_a_file(
    project: Path, nlora: Nlora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The current folder is another one, and later the whole project is moved."""
    monkeypatch.chdir(tmp_path)
    assert "decay on" in nlora("check", "project/support.yaml").out
    told = nlora("run", "project/support.yaml", "output_dir=project/run")
    assert told.status == 0, told.err
    record = read_run_file(project / "run")
    assert record["config"]["method"] == {"name": "./decay.py", "weight": 0.01}
    assert record["versions"]["decay.py"].startswith("sha256:")
    assert read_summary(project / "run").method == "decay"
    assert "nothing to do" in nlora("run", "project/support.yaml", "output_dir=project/run").out

    moved = project.rename(tmp_path / "moved") / "run"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"the billing thing\n")))
    for command in (
        ("eval", moved),
        ("predict", moved, "--task", "tickets"),
        ("analyze", moved),
        ("report", moved),
    ):
        told = nlora(*command)
        assert told.status == 0, f"{command}: {told.err}"
    assert "decay" in nlora("compare", moved, moved).out
    assert "decay, weight 0.01" in (moved / "report.html").read_text()


def test_its_penalty_is_part_of_the_training(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    norms = []
    for weight in (0, 100):
        learn("support.yaml", f"method.weight={weight}", f"output_dir=run{weight}")
        state = load_factors(f"run{weight}/outputs/1-tickets/adapter")
        norms.append(sum(float(f.update().norm()) for f in state.values()))
    assert norms[1] < norms[0] / 2


def test_a_run_resumes_with_the_file_and_says_that_it_has_changed(
    project: Path, nlora: Nlora, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    assert nlora("run", "support.yaml").status == 0
    scores = read_summary(Path("runs/support")).R
    shutil.rmtree("runs/support/outputs/2-urgency")
    with Path("decay.py").open("a") as file:
        file.write("# another comment\n")
    assert nlora("run", "support.yaml").status == 0
    assert scores == read_summary(Path("runs/support")).R
    record = read_run_file(Path("runs/support"))
    assert record["versions"]["decay.py"] != record["resumed_with"][0]["versions"]["decay.py"]


def test_a_sweep_names_it_as_a_variant(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.parent)
    sweep = {"base": "support.yaml", "variants": {"plain": "inclora", "decay": "./decay.py"}}
    (project / "sweep.yaml").write_text(yaml.safe_dump(sweep, sort_keys=False))
    configs = check_sweep(read_sweep("project/sweep.yaml"))
    assert [config.method.label for config in configs.values()] == ["inclora", "decay"]
    sweep["variants"]["decay"] = {"method": {"name": "./decay.py", "weigth": 1}}
    (project / "sweep.yaml").write_text(yaml.safe_dump(sweep, sort_keys=False))
    with pytest.raises(InputErrors, match=r"sweep.yaml:\d+: .*weigth: unknown key; did you mean 'weight'\?"):
        check_sweep(read_sweep("project/sweep.yaml"))


def test_a_wrong_option_is_named_with_its_line(
    project: Path, nlora: Nlora, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    told = nlora("check", "support.yaml", "method.weight=-1")
    assert (told.status, told.err) == (2, "error: method.weight=-1: must be a number >= 0, not -1\n")


def test_a_missing_file_says_where_it_was_looked_for(
    project: Path, nlora: Nlora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (project / "decay.py").unlink()
    told = nlora("check", "project/support.yaml")
    assert told.status == 2
    line = (project / "support.yaml").read_text().splitlines().index("  name: ./decay.py") + 1
    assert told.err == (
        f"error: project/support.yaml:{line}: method.name: no such file: ./decay.py "
        f"(looked in {tmp_path} and {project})\n"
    )


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("def f(:\n    pass\n", "{file}:1: is not Python: invalid syntax"),
        (
            "x = 1\nimport no_such_package\n",
            "{file}:2: ModuleNotFoundError: No module named 'no_such_package'",
        ),
        ("def f():\n    return 1 / 0\n\n\nf()\n", "{file}:2: ZeroDivisionError: division by zero"),
        (
            METHOD.replace("Method[DecayOptions]", "Method[dict]"),
            "{file}:12: TypeError: the options of Decay must be a subclass of MethodOptions",
        ),
        ("x = 1\n", "{file}: defines no subclass of nlora.methods.base.Method"),
        (
            METHOD + "\n\nclass Other(Method):\n    pass\n",
            "{file}:19: Other is a second method after Decay; a module defines one, and helper classes begin with an "
            "underscore",
        ),
    ],
)
def test_a_broken_file_is_one_line(tmp_path: Path, source: str, what: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(source)
    for _ in range(2):  # a failed import must not leave half a module
        assert mistake(str(file)) == what.format(file=file)


def test_a_helper_class_may_begin_with_an_underscore(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        METHOD.replace("class Decay(Method", "class _Base(Method") + "\n\nclass Decay(_Base):\n    pass\n"
    )
    assert build(str(file), {"weight": 2}).options.weight == 2  # type: ignore[attr-defined]


def test_a_file_called_like_another_method_has_to_be_renamed(tmp_path: Path) -> None:
    file = tmp_path / "ewc.py"
    file.write_text(METHOD)
    assert mistake(str(file)) == f"{file}: there is a method called 'ewc' already; rename the file"


def test_a_file_is_loaded_once_until_it_changes(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(METHOD)
    first, version = find(str(file)), version_of(str(file), Path())
    assert find(str(file)) is first
    assert first.name == "mine"
    file.write_text(METHOD.replace("1e-3", "2e-3"))
    assert build(str(file), {}).options.weight == 2e-3  # type: ignore[attr-defined]
    assert version_of(str(file), Path()) != version
    assert version_of("ewc", Path()) == {}


# An installed package


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """install(decay="package:Decay") with a package.py that is that of docs/methods.md."""
    (tmp_path / "decay_package.py").write_text(METHOD)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(_outside, "_declared", _outside._declared.__wrapped__)  # looked up each time

    def make(*entries: tuple[str, str]) -> None:
        found = [EntryPoint(name, value, _outside.GROUP) for name, value in entries]
        monkeypatch.setattr(_outside, "entry_points", lambda group: found if group == _outside.GROUP else [])

    return make


@pytest.mark.parametrize("value", ["decay_package:Decay", "decay_package"])
def test_an_installed_method_is_listed_described_and_built(
    install: Callable[..., None], nlora: Nlora, value: str
) -> None:
    install(("decay", value))
    assert set(method_names()) == {*builtin_names(), "decay"}
    assert describe("decay").summary == "Weight decay toward the backbone: a penalty on the squared update."
    method = build("decay", {"weight": 2})
    assert (method.name, method.options.weight) == ("decay", 2)  # type: ignore[attr-defined]
    listed = nlora("ls", "methods").out
    assert "Weight decay toward the backbone" in listed
    assert "Weight of the squared update" in listed
    with pytest.raises(InputErrors, match="did you mean 'decay'"):
        build("decai", {})


def test_a_run_of_an_installed_method_needs_no_file(
    install: Callable[..., None], project: Path, nlora: Nlora, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(("slow-decay", "decay_package:Decay"))
    monkeypatch.chdir(project)
    (project / "decay.py").unlink()
    assert nlora("run", "support.yaml", "method=slow-decay").status == 0
    assert read_summary(Path("runs/support")).method == "slow-decay"


def test_a_broken_package_is_told_only_where_it_is_named(install: Callable[..., None], nlora: Nlora) -> None:
    install(("broken", "no_such_package.methods"), ("text", "decay_package:__doc__"))
    assert "broken" in method_names()
    assert build("nlora", {}).name == "nlora"
    assert mistake("broken") == (
        "entry point 'broken = no_such_package.methods': ModuleNotFoundError: No module named 'no_such_package'"
    )
    assert mistake("text").endswith("is neither a subclass of Method nor a module that defines one")
    listed = nlora("ls", "methods")
    assert listed.status == 0
    assert "No module named 'no_such_package'" in listed.out
    assert "N-LoRA" in listed.out


def test_two_methods_of_one_name_are_refused(install: Callable[..., None]) -> None:
    install(("ewc", "decay_package:Decay"))
    assert (
        mistake("ewc")
        == "'ewc' is defined by nlora itself and decay_package:Decay; uninstall or rename all but one"
    )
    install(("decay", "decay_package"), ("decay", "decay_package:Decay"), ("decay", "decay_package"))
    assert mistake("decay").startswith("'decay' is defined by decay_package and decay_package:Decay;")


def test_no_file_is_loaded_unless_the_configuration_names_it(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    (project / "decay.py").write_text("raise SystemExit('loaded')\n")
    assert load_config("support.yaml").config.method.label == "decay"
    assert "decay" not in method_names()
    assert build("nlora", {}).name == "nlora"
