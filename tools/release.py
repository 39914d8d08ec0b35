"""Builds a release in dist/ and tries it out, or says why it cannot go out.

    make release                             # what would go out today
    python tools/release.py --tag v0.1.0     # the same for a tag, as .github/workflows/release.yml does

Refused are a tree with changes that are not committed, a tag that is not the version, a citation or a changelog of
another version, and a wheel or an sdist with a file too few or too many. The wheel is then installed into an empty
environment, where `smoke.py` tries it out. The version has one place, `__version__` in src/nlora/__init__.py, so a
clone without tags builds as well.
"""

from __future__ import annotations

import argparse
import ast
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
METADATA = ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")


def main() -> None:
    """Exit status 0 if the release could go out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tag", help="the tag of the release, such as v0.1.0")
    parser.add_argument("--check", action="store_true", help="check the tree and the tag, build nothing")
    given = parser.parse_args()
    _stop_for(problems(ROOT, given.tag))
    if given.check:
        return
    out = ROOT / "dist"
    shutil.rmtree(out, ignore_errors=True)
    wheel, sdist = build(ROOT, out)
    _stop_for(wrong_contents(ROOT, wheel, sdist))
    with tempfile.TemporaryDirectory() as folder:
        smoke(empty_environment(Path(folder, "venv"), wheel))
    print(f"{wheel}\n{sdist}\ncould go out")


def problems(root: Path, tag: str | None = None) -> list[str]:
    """Why the tree must not be released; with a tag, why not under it."""
    version = version_of(root)
    found = []
    if changed := _git(root, "status", "--porcelain"):
        found.append(f"these changes are not committed; commit or remove them: {', '.join(changed)}")
    cited = re.search(r"^version: (.+)$", (root / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    if cited is None or cited[1] != version:
        found.append(f"CITATION.cff has another version than {version}; change it there")
    heading = re.search(r"^## (\S+)(.*)$", (root / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    if heading is None or heading[1] != version:
        found.append(f"the first section of CHANGELOG.md is not that of {version}; write one")
    elif tag is not None and "unreleased" in heading[2]:
        found.append(f"CHANGELOG.md says that {version} is unreleased; put the date there")
    if tag is not None and tag != f"v{version}":
        found.append(f"the tag {tag} is not the version; tag v{version}, or change src/nlora/__init__.py")
    return found


def version_of(root: Path) -> str:
    """`__version__` of the sources, without importing them."""
    for node in ast.parse((root / "src/nlora/__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__":
            return str(ast.literal_eval(node.value))
    raise LookupError("src/nlora/__init__.py has no __version__")


def build(root: Path, out: Path) -> tuple[Path, Path]:
    """Builds the sdist, and the wheel from it; both pass twine's strict check."""
    _python("-m", "build", "--no-isolation", "--outdir", str(out), str(root))
    wheel, sdist = next(out.glob("*.whl")), next(out.glob("*.tar.gz"))
    _python("-m", "twine", "check", "--strict", str(wheel), str(sdist))
    return wheel, sdist


def wrong_contents(root: Path, wheel: Path, sdist: Path) -> list[str]:
    """What is missing from the wheel (the package and its metadata) or the sdist (the repository), or too much."""
    files = _git(root, "ls-files", "--cached", "--others", "--exclude-standard")
    base = f"nlora-{version_of(root)}"
    package = [file.removeprefix("src/") for file in files if file.startswith("src/nlora/")]
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = archive.namelist()
    with tarfile.open(sdist) as archive:
        in_sdist = [member.name for member in archive.getmembers() if not member.isdir()]
    return [
        *_differences("the wheel", in_wheel, [*package, *(f"{base}.dist-info/{name}" for name in METADATA)]),
        *_differences("the sdist", in_sdist, [f"{base}/{file}" for file in (*files, "PKG-INFO")]),
    ]


def empty_environment(folder: Path, wheel: Path) -> Path:
    """The Python of a new environment with the wheel and what it needs, in the versions that the tests ran with."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    _python(
        "-m",
        "pip",
        "install",
        "--quiet",
        "--constraint",
        str(ROOT / "constraints.txt"),
        str(wheel),
        by=python,
    )
    return python


def smoke(python: Path) -> None:
    """Tries out what is installed there; -I keeps the variables and the folder of the caller out."""
    _python("-I", str(ROOT / "tools" / "smoke.py"), by=python)


def _differences(what: str, found: Iterable[str], expected: Iterable[str]) -> list[str]:
    there, wanted = set(found), set(expected)
    lines = {"lacks": sorted(wanted - there), "has too much": sorted(there - wanted)}
    return [f"{what} {verb}: {', '.join(names)}" for verb, names in lines.items() if names]


def _git(root: Path, *words: str) -> list[str]:
    done = subprocess.run(["git", *words], cwd=root, check=True, capture_output=True, text=True)
    return done.stdout.splitlines()


def _python(*words: str, by: Path | str = sys.executable) -> None:
    subprocess.run([by, *words], check=True)


def _stop_for(found: list[str]) -> None:
    if found:
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
