"""What follows a run's last stage: the interference of its updates, the final summary, and the report."""

from __future__ import annotations

import logging

from nlora.analysis.of_run import analyze_run
from nlora.errors import AdapterError, NloraError, RunError
from nlora.report.write import write_report
from nlora.runs.atomic import write_json
from nlora.runs.events import Progress
from nlora.runs.folder import RunFolder
from nlora.runs.interference_file import ANALYSIS_FILE
from nlora.runs.layout import REPORT_FILE
from nlora.runs.summary import Summary

log = logging.getLogger("nlora")


def finish_run(run: RunFolder, progress: Progress) -> Summary:
    """Writes analysis.json, summary.json and report.html, and returns the summary.

    Stages that cannot be compared leave no analysis.json and no collisions in the summary. Errors end nothing: the
    stages are committed, and `nlora analyze` and `nlora report` show the same errors.
    """
    collision = None
    try:
        found = analyze_run(run.folder)
        write_json(run.folder / ANALYSIS_FILE, found.to_json())
        collision = found.collision()
    except (AdapterError, RunError) as error:
        log.info("no analysis: %s", error)
    summary = run.write_summary(collision)
    try:
        write_report([run.folder], run.folder / REPORT_FILE)
    except NloraError as error:
        progress.say(f"no report: {error}")
        log.warning("no report: %s", error)
    return summary
