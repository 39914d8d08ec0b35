"""Processes that die or meet in a run's folder: what they leave is whole, and one at a time writes."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from nlora.config.schema import Config
from nlora.errors import RunError
from nlora.runs.folder import RunFolder


def config_of(folder: Path) -> Config:
    return Config.model_validate({"tasks": ["agnews", "amazon"], "output_dir": str(folder)})


# Runs a two-stage run in child processes and kills each one step later than the one before: after its n-th
# fsync or rename. What the next process finds is printed for each n, until a child comes through.
KILLED = textwrap.dedent(
    """
    import json, os, sys
    from pathlib import Path
    from nlora.config.schema import Config
    from nlora.runs.folder import RunFolder, write_stage_record
    from nlora.runs.summary import StageRecord, read_summary

    def run(folder):
        config = Config.model_validate({"tasks": ["a", "b"], "output_dir": str(folder)})
        with RunFolder.open(config, {}) as run:
            for stage, task in enumerate(config.tasks, start=1):
                if run.is_committed(stage):
                    continue
                with run.stage(stage) as temporary:
                    (temporary / "adapter").mkdir()
                    (temporary / "adapter" / "weights").write_text("w" * 9)
                    write_stage_record(temporary, StageRecord(stage=stage, task=task.name, scores={"a": 50, "b": 50},
                        train_seconds=1, evaluate_seconds=1, train_samples_per_second=1))
                    (temporary / "last").write_text("l")
                run.write_summary()
            return run.is_complete()

    def killed_after(steps, folder):
        child = os.fork()
        if child:
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        left = [steps]
        def counted(function):
            def wrapper(*arguments, **keywords):
                if left[0] == 0:
                    os._exit(9)
                left[0] -= 1
                return function(*arguments, **keywords)
            return wrapper
        os.fsync, os.rename, os.replace = counted(os.fsync), counted(os.rename), counted(os.replace)
        run(folder)
        os._exit(0)

    found, status, steps = [], 9, 0
    while status == 9:
        folder = Path(sys.argv[1]) / str(steps)
        status = killed_after(steps, folder)
        stages = {}
        for entry in sorted((folder / "outputs").glob("[0-9]*")) if folder.exists() else ():
            stages[entry.name] = sorted(str(f.relative_to(entry)) for f in entry.rglob("*") if f.is_file())
        summary = read_summary(folder).status if (folder / "summary.json").exists() else None
        resumed = run(folder)
        left = sorted(f.name for f in folder.rglob("*") if f.name.startswith(".tmp-"))
        found.append({"status": status, "stages": stages, "summary": summary, "resumed": resumed,
                      "left": left})
        steps += 1
    print(json.dumps(found))
    """
)


@pytest.mark.skipif(os.name == "nt", reason="forks")
def test_a_kill_at_any_point_leaves_whole_stages_or_none_and_resumes(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    whole = ["adapter/weights", "checksums.json", "last", "stage.json"]
    assert found[-1] == {"status": 0, "stages": {"1-a": whole, "2-b": whole}, "summary": "complete",
                         "resumed": True, "left": []}  # fmt: skip
    assert len(found) > 20  # the counting reached the writes
    seen = set()
    for kill in found:
        assert all(files == whole for files in kill["stages"].values()), kill
        assert list(kill["stages"]) in ([], ["1-a"], ["1-a", "2-b"])
        assert (kill["resumed"], kill["left"]) == (True, [])
        seen.add(len(kill["stages"]))
    assert seen == {0, 1, 2}


def test_a_second_process_is_refused_until_the_first_lets_go(tmp_path: Path) -> None:
    code = textwrap.dedent(
        """
        import sys
        from nlora.config.schema import Config
        from nlora.runs.folder import RunFolder
        config = Config.model_validate({"tasks": ["agnews", "amazon"], "output_dir": sys.argv[1]})
        try:
            RunFolder.open(config, {}).close()
        except Exception as error:
            print(type(error).__name__, error)
        """
    )

    def second() -> str:
        command = [sys.executable, "-c", code, str(tmp_path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    with RunFolder.open(config_of(tmp_path), {}):
        assert second().startswith(f"RunError {tmp_path}: in use by another run")
        with pytest.raises(RunError, match="in use by another run"):
            RunFolder.open(config_of(tmp_path), {})
    assert second() == ""


def test_a_dead_process_does_not_keep_the_folder(tmp_path: Path) -> None:
    code = (
        "import os, sys\nfrom nlora.config.schema import Config\nfrom nlora.runs.folder import RunFolder\n"
        "config = Config.model_validate({'tasks': ['agnews', 'amazon'], 'output_dir': sys.argv[1]})\n"
        "run = RunFolder.open(config, {})\n"
        "os._exit(9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 9, done.stderr
    assert (tmp_path / ".lock").exists()
    RunFolder.open(config_of(tmp_path), {}).close()
