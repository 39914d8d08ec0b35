"""`nlora report`: its files and errors, and the figures for a publication."""

from __future__ import annotations

import re
import shutil
import xml.etree.ElementTree as ET
from importlib.util import find_spec
from pathlib import Path

import pytest
from made_runs import make_run
from made_runs import matrix as made_matrix

from helpers import without_checksums
from nlora.cli import app
from nlora.errors import MissingExtraError, RunError
from nlora.report.charts import pdf
from nlora.report.charts.scene import Label, Scene
from nlora.report.run_files import load_run
from nlora.report.write import write_figures, write_report

FIGURES = ["collision", "orthogonality", "nuclear_norm", "accuracy", "average_accuracy", "matrix"]


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["nlora", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        app.main()
    return int(stop.value.code or 0)


def test_the_page_is_written_to_the_run_or_to_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [make_run(tmp_path / name, name=name) for name in ("a", "b")]
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "report", runs[0]) == 0
    assert capsys.readouterr().out.strip() == str(runs[0] / "report.html")
    assert (runs[0] / "report.html").is_file()
    assert call(monkeypatch, "report", *runs) == 0
    assert (tmp_path / "report.html").is_file()
    assert call(monkeypatch, "report", *runs, "--out", "both.html") == 0
    assert (tmp_path / "both.html").read_text() == (tmp_path / "report.html").read_text()


def test_a_folder_of_runs_means_all_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [make_run(tmp_path / "runs" / name, name=name) for name in ("a", "b")]
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "report", "runs", "--out", "folder.html") == 0
    assert call(monkeypatch, "report", *runs, "--out", "each.html") == 0
    assert (tmp_path / "folder.html").read_text() == (tmp_path / "each.html").read_text().replace(
        str(tmp_path) + "/", ""
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere: no such folder; give the output_dir of a run"),
        (["empty"], "empty: no summary.json in it"),
        (["a", "a"], "a: is given twice"),
        (["a", "--base", "nope"], "--base nope: no finished run on the page has this name; there are: "),
        (["a", "--out", "b/c.html"], "there is no folder b"),
        (["a", "--out", "a"], "a: is a folder"),
        (["a", "--figures", "a/run.yaml"], "run.yaml: is a file"),
    ],
)
def test_wrong_input_is_one_line_and_exit_status_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    make_run(tmp_path / "a")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    assert call(monkeypatch, "report", *arguments) == 2
    told = capsys.readouterr().err
    assert said in told
    assert len(told.strip().splitlines()) == 1
    assert not list(tmp_path.rglob("report.html")), "complaints come before anything is written"


def test_a_folder_of_figures_that_is_not_writable_is_told_before_the_page_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "os.access", lambda path, mode: False
    )  # the tests may run as root, who may write anywhere
    assert call(monkeypatch, "report", "a", "--figures", "figures") == 2
    assert "is not writable; give another folder for the figures" in capsys.readouterr().err
    assert not list(tmp_path.rglob("report.html"))


def test_the_papers_figures_are_drawings_with_their_numbers(tmp_path: Path) -> None:
    if find_spec("matplotlib") is None:
        pytest.skip("PDF figures need matplotlib, the extra nlora[figures]")
    run = make_run(tmp_path / "run", method="nlora", analyzed=True)
    written = write_figures([run], tmp_path / "figures")
    assert [path.name for path in written] == [f"{n}.{kind}" for kind in ("svg", "pdf") for n in FIGURES]
    matrix = ET.parse(tmp_path / "figures/matrix.svg").getroot()
    texts = [e.text for e in matrix.iter("{http://www.w3.org/2000/svg}text")]
    scores = [float(t) for t in texts if t and re.fullmatch(r"[0-9.]+", t)]
    assert scores == [value for row in made_matrix(3) for value in row if value is not None]
    for path in written:
        if path.suffix == ".pdf":
            assert path.read_bytes().startswith(b"%PDF-1.")
            assert b"/FontFile2" in path.read_bytes()  # the outlines are in the file
    again = write_figures([run], tmp_path / "again")
    assert [p.read_bytes() for p in again] == [p.read_bytes() for p in written]


def test_characters_that_no_font_has_are_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("matplotlib", reason="PDF figures need nlora[figures]")
    monkeypatch.setattr(pdf, "_MORE_FONTS", ())
    run = make_run(tmp_path / "run", tasks=("情感", "b"))
    write_figures([run], tmp_path / "figures")
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'figures'}: the PDF files lack some characters, for which there is no font; "
        "the SVG files have them"
    ]
    caplog.clear()
    write_figures([make_run(tmp_path / "plain")], tmp_path / "figures")
    assert not caplog.records


def test_characters_come_from_other_fonts_that_the_system_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib", reason="PDF figures need nlora[figures]")
    from matplotlib.font_manager import findfont, get_font

    ours, other = (set(get_font(findfont(name)).get_charmap()) for name in ("DejaVu Sans", "STIXGeneral"))
    scene = Scene(50, 20, "t", "d", (Label(1, 10, chr(max(other - ours))),))
    monkeypatch.setattr(pdf, "_MORE_FONTS", ())
    assert not pdf.write_pdf(scene, tmp_path / "a.pdf")
    monkeypatch.setattr(pdf, "_MORE_FONTS", ("A font that no system has", "STIXGeneral"))
    assert pdf.write_pdf(scene, tmp_path / "b.pdf")
    assert b"STIXGeneral" in (tmp_path / "b.pdf").read_bytes()


def test_without_matplotlib_the_svg_files_are_written_and_the_command_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pdf, "find_spec", lambda _name: None)
    run = make_run(tmp_path / "run", analyzed=True)
    with pytest.raises(
        MissingExtraError, match=re.escape("matplotlib is not installed; pip install matplotlib")
    ):
        write_figures([run], tmp_path / "figures")
    assert sorted(p.stem for p in (tmp_path / "figures").iterdir()) == sorted(FIGURES)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("summary.json", "{", "summary.json: cannot be read"),
        ("analysis.json", "{}", "analysis.json: broken: threshold"),
        (
            "analysis.json",
            '{"threshold": 1, "modules": ["a"], "kinds": ["q", "v"]}',
            "kinds has 2 entries; 1 expected",
        ),
        (
            "outputs/1-colors/stage.json",
            "[]",
            "stage.json: is broken; restore it, or give the run's command with --repair",
        ),
        ("outputs/1-colors/stage.json", "", "stage.json: is broken; restore it, or give the run's command"),
        ("outputs/2-animals/trainer_state.json", "nothing", "trainer_state.json: is broken (Expecting value"),
        (
            "outputs/1-colors/predict_eval_predictions.jsonl",
            '{"Dataset": "colors"}\n',
            "jsonl:1: not a prediction",
        ),
        ("run.yaml", "config: [", "run.yaml"),
    ],
)
def test_a_broken_file_is_an_error_of_one_line(tmp_path: Path, file: str, content: str, said: str) -> None:
    run = make_run(tmp_path / "run")
    without_checksums(run)
    (run / file).write_text(content)
    with pytest.raises(RunError, match=re.escape(said)) as error:
        write_report([run], tmp_path / "page.html")
    assert len(str(error.value).splitlines()) == 1
    assert "delete" not in str(error.value) or "predictions" in file
    assert not (tmp_path / "page.html").exists()


def test_a_stage_that_is_gone_is_not_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    shutil.rmtree(run / "outputs/1-colors")
    with pytest.raises(
        RunError, match="1-colors: is missing, but later stages exist; restore it, or give the run's"
    ):
        load_run(run)
