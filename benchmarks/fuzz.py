"""Feeds mutated files and configurations to nlora, guided by coverage, and keeps what it does wrong.

    pip install atheris
    python benchmarks/fuzz.py readers --inputs 200000
    python benchmarks/fuzz.py config --inputs 200000 --keep

Targets: readers (files of examples), texts (the input of `nlora predict`) and config (YAML with overrides); see
fuzz_targets.py for what each requires of nlora. The seeds are tests/fuzz_corpus/TARGET, which the tests replay; --keep
adds inputs that reach new code to it, as few and as small as there are. Findings go to a folder: one input and
its traceback for each place in the code. Exit status 1 if there is any. Only Linux has atheris as a wheel.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

CORPUS = Path(__file__).parents[1] / "tests" / "fuzz_corpus"
_MOST_BYTES = 4096
_KEPT_BYTES = 60_000
"""The most that --keep leaves in the corpus of one target."""
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
        ended = _child(asked, work, options)
        counts = re.findall(r"#(\d+)\s|number_of_executed_units: (\d+)", ended.stderr)
        done += max((int(a or b) for a, b in counts), default=0)
        reached = (re.findall(r"cov: \d+ ft: \d+ corp: \d+", ended.stderr) or [reached])[-1]
        if ended.returncode:
            crashes += 1
            print(ended.stderr[-3000:], file=sys.stderr)
            if not counts:
                break
    return done, crashes, reached


def _child(asked: argparse.Namespace, work: Path, options: Sequence[str]) -> subprocess.CompletedProcess[str]:
    (work / "options").write_text("\n".join(options))
    command = [sys.executable, __file__, asked.target, "--findings", str(asked.findings), "--child", str(work)]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace", check=False)


def _fuzz(target: str, findings: Path, work: Path) -> None:
    """Runs atheris, which ends the process."""
    import atheris

    sys.dont_write_bytecode = True
    with atheris.instrument_imports(include=["nlora.data", "nlora.config", "nlora.errors"]):
        import fuzz_targets
    from nlora.methods import registry

    # It reads the metadata of every installed package, which takes longer than all the rest of an input.
    registry.installed = functools.cache(registry.installed)
    run = fuzz_targets.TARGETS[target]
    folder = work / "files"
    folder.mkdir(exist_ok=True)
    for seed in sorted((CORPUS / target).glob("*"))[:5]:  # what is imported late is imported now
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
        stem.with_suffix(".txt").write_text("".join(traceback.format_exception(error)), errors="backslashreplace")


def _keep(target: str, work: Path) -> None:
    """Adds the smallest inputs with new coverage to the corpus, up to a number of bytes."""
    folder = CORPUS / target
    room = _KEPT_BYTES - sum(path.stat().st_size for path in folder.iterdir())
    for path in sorted((work / "corpus").iterdir(), key=lambda path: path.stat().st_size):
        room -= path.stat().st_size
        if room < 0:
            break
        shutil.copy(path, folder / path.name)


if __name__ == "__main__":
    sys.exit(main())
