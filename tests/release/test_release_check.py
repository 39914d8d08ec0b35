"""What goes out: refused if it must not, complete, and it works in an environment of its own."""

from __future__ import annotations

import ast
import importlib.metadata
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import nlora

ROOT = Path(__file__).parents[2]
OTHER_NAMES = {"yaml": "PyYAML", "sklearn": "scikit-learn"}
"""What is imported -> what is installed, where the two differ."""


@pytest.fixture
def release(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import release

    return release


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A clean repository, of version 1.2.3, from which v1.2.3 may go out."""
    (tmp_path / "src/nlora").mkdir(parents=True)
    (tmp_path / "src/nlora/__init__.py").write_text('"""A package."""\n\n__version__ = "1.2.3"\n')
    (tmp_path / "CITATION.cff").write_text("cff-version: 1.2.0\nversion: 1.2.3\n")
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 1.2.3 (2026-11-26)\n\n## 1.2.2 (unreleased)\n")
    (tmp_path / ".gitignore").write_text("dist/\n")
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist/old.whl").touch()
    _commit(tmp_path, "init")
    return tmp_path


def _commit(tree: Path, *first: str) -> None:
    who = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    for words in (*[[word] for word in first], ["add", "-A"], [*who, "commit", "-m", "all"]):
        subprocess.run(["git", *words], cwd=tree, check=True, capture_output=True)


@pytest.mark.parametrize("tag", [None, "v1.2.3"])
def test_a_clean_tree_may_go_out(release: ModuleType, tree: Path, tag: str | None) -> None:
    assert release.problems(tree, tag) == []


@pytest.mark.parametrize("tag", ["v1.2.4", "1.2.3", "v1.2.3rc1", "main"])
def test_a_tag_that_is_not_the_version_is_refused(release: ModuleType, tree: Path, tag: str) -> None:
    assert release.problems(tree, tag) == [
        f"the tag {tag} is not the version; tag v1.2.3, or change src/nlora/__init__.py"
    ]


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("CITATION.cff", "version: 1.2.2\n", "CITATION.cff has another version than 1.2.3"),
        ("CHANGELOG.md", "## 1.2.2 (2026-11-26)\n", "the first section of CHANGELOG.md is not that of 1.2.3"),
        ("CHANGELOG.md", "## 1.2.3 (unreleased)\n", "CHANGELOG.md says that 1.2.3 is unreleased"),
        ("src/nlora/__init__.py", '__version__ = "1.2.4"\n', "the tag v1.2.3 is not the version; tag v1.2.4"),
    ],
)
def test_what_names_another_version_is_refused(
    release: ModuleType, tree: Path, file: str, text: str, said: str
) -> None:
    (tree / file).write_text(text)
    _commit(tree)
    assert any(said in line for line in release.problems(tree, "v1.2.3"))


@pytest.mark.parametrize("change", ["changed", "new"])
def test_a_dirty_tree_is_refused(release: ModuleType, tree: Path, change: str) -> None:
    (tree / ("CITATION.cff" if change == "changed" else "notes.txt")).write_text("version: 1.2.3\n")
    (line,) = release.problems(tree)
    assert line.startswith("these changes are not committed; commit or remove them: ")


def test_the_program_stops_with_the_reason(release: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["release.py", "--check", "--tag", "v0.0.0"])
    with pytest.raises(SystemExit) as stop:
        release.main()
    assert f"the tag v0.0.0 is not the version; tag v{nlora.__version__}" in str(stop.value.code)


def test_a_file_too_few_or_too_many_is_told(release: ModuleType, tree: Path) -> None:
    wheel, sdist = tree / "dist/a.whl", tree / "dist/a.tar.gz"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in (
            "nlora/__init__.py",
            "tests/test_a.py",
            *(f"nlora-1.2.3.dist-info/{n}" for n in release.METADATA),
        ):
            archive.writestr(name, "")
    with tarfile.open(sdist, "w:gz") as archive:
        for name in ("src/nlora/__init__.py", "CHANGELOG.md", ".gitignore"):
            archive.add(tree / name, f"nlora-1.2.3/{name}")
    assert release.wrong_contents(tree, wheel, sdist) == [
        "the wheel has too much: tests/test_a.py",
        "the sdist lacks: nlora-1.2.3/CITATION.cff, nlora-1.2.3/PKG-INFO",
    ]


@pytest.mark.slow
def test_what_is_built_is_complete_and_works_where_only_the_wheel_is(
    release: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment borrows the packages that nlora needs. `make release` installs those as well."""
    if not (ROOT / ".git").exists():
        pytest.skip("what belongs in a release is what git knows, and this is no clone")
    wheel, sdist = release.build(ROOT, tmp_path / "dist")
    assert release.wrong_contents(ROOT, wheel, sdist) == []
    python = _borrowing_environment(tmp_path / "venv", wheel)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))  # must not matter
    release.smoke(python)


def _borrowing_environment(folder: Path, wheel: Path) -> Path:
    """A new environment with the wheel that also finds the packages of this one, but not this one's nlora.

    Files .pth of a folder that is itself added by one are not read, so an editable nlora stays out.
    """
    venv.create(folder)
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"])
    python = folder / "bin/python"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
    ]
    subprocess.run([*pip, str(wheel)], check=True)
    return python


def test_every_package_that_nlora_imports_is_declared() -> None:
    """As a dependency, an extra, or what one of them needs: the borrowing environment would not miss it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    declared = {Requirement(text).name for text in project["dependencies"]}
    declared |= {Requirement(text).name for extra in extras.values() for text in extra}
    allowed = {canonicalize_name(name) for name in declared}
    for name in declared:
        allowed |= _needs(name)
    for package, file in _imported().items():
        name = canonicalize_name(OTHER_NAMES.get(package, package))
        assert name in allowed, f"{file} imports {package}, which pyproject.toml does not name"


def _needs(name: str) -> set[str]:
    try:
        texts = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:  # an extra that is not installed
        return set()
    requirements = [Requirement(text) for text in texts]
    return {
        canonicalize_name(r.name)
        for r in requirements
        if r.marker is None or r.marker.evaluate({"extra": ""})
    }


def _imported() -> dict[str, Path]:
    """Top-level packages outside the standard library -> a file that imports it."""
    found: dict[str, Path] = {}
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0]: file for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found[node.module.split(".")[0]] = file
    return {name: file for name, file in found.items() if name not in {*sys.stdlib_module_names, "nlora"}}


def test_the_smoke_test_refuses_a_checkout(tmp_path: Path) -> None:
    """What is tried out is what is installed: a copy of the sources beside the script is not."""
    shutil.copytree(ROOT / "tools", tmp_path / "tools")
    (tmp_path / "tools/nlora").mkdir()
    (tmp_path / "tools/nlora/__init__.py").write_text("")
    done = subprocess.run(
        [sys.executable, tmp_path / "tools/smoke.py"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "is tried out, not what is installed in" in done.stderr
