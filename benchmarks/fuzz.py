"""Feeds mutated files and configurations to nlora, guided by coverage, and keeps what it does wrong.

    pip install atheris
    python benchmarks/fuzz.py readers --inputs 200000
    python benchmarks/fuzz.py config --inputs 200000 --keep

Targets: readers (files of examples), texts (the input of `nlora predict`) and config (YAML with overrides); see
fuzz_targets.py for what each requires of nlora. The seeds are tests/fuzz_corpus/TARGET, which the tests replay; --keep
adds those that reach new code to it, and leaves out what they make needless. Findings go to a folder: one input and
its traceback for each place in the code. Exit status 1 if there is any. Only Linux has atheris as a wheel.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

CORPUS = Path(__file__).parents[1] / "tests" / "fuzz_corpus"
_MOST_BYTES = 4096
WORDS = {
    "readers": "sentence,label,input,output,text,question,answer,lang,messages,conversations,turns,role,content,user,"
    "assistant,system,from,value,human,gpt,type,tool_calls,billing,network,null,true,1e400,NaN,PAR1,\\\\ud83d",
    "texts": "sentence,text,input,lang,question,messages,role,content,user,\\\\ud83d,\\\\xef\\\\xbb\\\\xbf",
    "config": "tasks:,name:,train:,test:,labels:,label_names:,columns:,template:,method:,nlora,olora,lora:,targets:,"
    "evaluate:,stages:,epochs:,weight:,after:,adapter:,seed:,config:,versions:,base_folder:,protocol: released,"
    "output_dir:,!!binary,!!set,!!omap,<<: *a,&a,*a,0x7f,.inf,.nan,1e-5,2024-01-01,test_share:,metric:,quoting:",
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("target", choices=sorted(WORDS))
    parser.add_argument("--inputs", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=int, default=10, help="the most that one input may take")
    parser.add_argument("--findings", type=Path, default=Path("runs/fuzz"), help="folder for what goes wrong")
    parser.add_argument("--keep", action="store_true", help="add inputs that reach new code to the corpus")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)  # the process in which atheris runs
    asked = parser.parse_args(arguments)
    if asked.child is not None:
        _fuzz(asked.target, asked.findings, asked.child)
    findings = asked.findings / asked.target
    shutil.rmtree(findings, ignore_errors=True)
    findings.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as work:
        started = time.perf_counter()
        inputs, crashes, reached = _run(asked, findings, Path(work))
        seconds = time.perf_counter() - started
        if asked.keep:
            _keep(asked.target, Path(work))
    found = len(list(findings.glob("*.txt"))) + crashes
    where = f" in {findings}" if found else ""
    print(f"{asked.target}: {inputs} inputs in {seconds:.0f} s ({reached}), {found} findings{where}")
    return 1 if found else 0


def _run(asked: argparse.Namespace, findings: Path, work: Path) -> tuple[int, int, str]:
    """The number of inputs, how often the process died or an input took too long, and what atheris says it reached."""
    (work / "corpus").mkdir()
    words = [f'"{word}"' for word in WORDS[asked.target].split(",")]
    (work / "words").write_text("\n".join(words) + "\n")
    done, crashes, reached = 0, 0, ""
    while done < asked.inputs and crashes < 20:
        options = [
            f"-runs={asked.inputs - done}", f"-seed={asked.seed + crashes}", f"-timeout={asked.seconds}",
            f"-max_len={_MOST_BYTES}", f"-dict={work / 'words'}", f"-artifact_prefix={findings}/",
            "-rss_limit_mb=4096", "-print_final_stats=1", str(work / "corpus"), str(CORPUS / asked.target),
        ]  # fmt: skip
        status, log = _child(asked, work, options)
        counts = re.findall(r"#(\d+)\s|number_of_executed_units: (\d+)", log)
        done += max((int(a or b) for a, b in counts), default=0)
        reached = (re.findall(r"cov: \d+ ft: \d+ corp: \d+", log) or [reached])[-1]
        if status:
            crashes += 1
            print(log[-3000:], file=sys.stderr)
            if not counts:
                break
    return done, crashes, reached


def _child(asked: argparse.Namespace, work: Path, options: Sequence[str]) -> tuple[int, str]:
    """The exit status, and what atheris printed, which can also be followed in the log beside the findings."""
    (work / "options").write_text("\n".join(options))
    command = [
        sys.executable,
        __file__,
        asked.target,
        "--findings",
        str(asked.findings),
        "--child",
        str(work),
    ]
    with (asked.findings / asked.target / "log").open("w") as log:
        ended = subprocess.run(command, stderr=log, check=False)
    return ended.returncode, Path(log.name).read_text(errors="replace")


def _fuzz(target: str, findings: Path, work: Path) -> None:
    """Runs atheris, which ends the process."""
    import atheris

    sys.dont_write_bytecode = True
    with atheris.instrument_imports(include=["nlora.data", "nlora.config", "nlora.errors"]):
        import fuzz_targets
    from nlora.methods import _outside, registry

    # It reads the metadata of every installed package, which takes longer than all the rest of an input.
    registry.installed = functools.cache(_outside.installed)  # type: ignore[attr-defined]
    run = fuzz_targets.TARGETS[target]
    folder = work / "files"
    folder.mkdir(exist_ok=True)
    for seed in (CORPUS / target).iterdir():  # what is imported late is imported now, and not timed
        with contextlib.suppress(Exception):
            run(seed.read_bytes(), folder)

    def one(data: bytes) -> None:
        try:
            with fuzz_targets.only_in(folder):
                run(data, folder)
        except Exception as error:
            _record(error, data, findings / target)

    atheris.Setup([__file__, *(work / "options").read_text().split("\n")], one)
    atheris.Fuzz()


def _record(error: Exception, data: bytes, findings: Path) -> None:
    """One input and its traceback for each place and kind of error; the smallest input is kept."""
    at = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{type(error).__name__} {Path(at.filename).name}:{at.lineno}"
    stem = findings / hashlib.sha1(place.encode()).hexdigest()[:12]
    kept = stem.with_suffix(".input")
    if not kept.exists() or len(data) < kept.stat().st_size:
        kept.write_bytes(data)
        stem.with_suffix(".txt").write_text(
            "".join(traceback.format_exception(error)), errors="backslashreplace"
        )


def _keep(target: str, work: Path) -> None:
    """Leaves the smallest inputs in the corpus that together go from line to line as all of them do.

    Inputs with a name that somebody gave them stay, whatever they reach.
    """
    import fuzz_targets

    folder = CORPUS / target
    named = [path for path in folder.iterdir() if not re.fullmatch("[0-9a-f]{40}", path.name)]
    others = {path.name: path.read_bytes() for place in (folder, work / "corpus") for path in place.iterdir()}
    files = work / "kept"
    files.mkdir()
    reached: set[tuple[str, int, int]] = set()
    for path in named:
        others.pop(path.name)
        reached |= _steps(fuzz_targets.TARGETS[target], path.read_bytes(), files)
    for name, data in sorted(others.items(), key=lambda item: len(item[1])):
        new = _steps(fuzz_targets.TARGETS[target], data, files) - reached
        reached |= new
        if new:
            (folder / name).write_bytes(data)
        else:
            (folder / name).unlink(missing_ok=True)


def _steps(run: Callable[[bytes, Path], None], data: bytes, folder: Path) -> set[tuple[str, int, int]]:
    """(file, line, next line in the same function) of what an input runs in the rooms that are fuzzed."""
    found: set[tuple[str, int, int]] = set()
    last: dict[int, int] = {}

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        file = frame.f_code.co_filename
        if not any(room in file for room in ("/nlora/data/", "/nlora/config/", "/nlora/errors")):
            return None
        found.add((file, last.get(id(frame), 0), frame.f_lineno))
        last[id(frame)] = frame.f_lineno
        if event == "return":
            del last[id(frame)]
        return trace

    sys.settrace(trace)
    try:
        with contextlib.suppress(Exception):  # a finding, which is kept as such
            run(data, folder)
    finally:
        sys.settrace(None)
    return found


if __name__ == "__main__":
    sys.exit(main())
