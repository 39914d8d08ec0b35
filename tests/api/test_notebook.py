"""nlora in a Jupyter kernel: two runs in one process, one of them open, with a bar of its own and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")

CELLS = [
    """
import nlora

first = nlora.run(nlora.load_config("support.yaml", {"output_dir": "runs/first"}))
""",
    """
second = nlora.run(nlora.load_config("support.yaml", {"output_dir": "runs/second", "method": "pertask"}))
""",
    """
assert first.summary.R == nlora.open_run("runs/support").summary.R
evaluation = second.evaluate(batch_size=2)
assert [s.score for s in evaluation.scores] == list(second.summary.R[1])
second.predict(["the billing thing"], task="tickets")
""",
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_notebook_shows_a_bar_and_the_finished_stages(here: Path) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    client = nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3")
    client.execute(cwd=str(here))
    outputs = [cell["outputs"] for cell in notebook.cells]
    assert [[output["output_type"] for output in o] for o in outputs] == [
        ["display_data"],
        ["display_data"],
        ["display_data", "display_data", "execute_result"],
    ], outputs
    for run in outputs[:2]:
        text = run[0]["data"]["text/plain"]
        assert "stage 2: urgency learned; tickets" in text
        assert "<progress" not in run[0]["data"]["text/html"], "the bar goes when the work is done"
    assert outputs[2][2]["data"]["text/plain"] in ("['billing']", "['network']", "['hardware']")
