"""What a finished run leaves beside its stages: where their updates meet, and the page that shows all of it.

summary = write_outcome(run)        # analysis.json, the collisions in summary.json, report.html
"""

from __future__ import annotations

import logging

from nlora.cli.analyze import ANALYSIS_FILE, analyze_run, collision_of
from nlora.errors import AdapterError, NloraError, RunError
from nlora.report.write import REPORT_FILE, write_report
from nlora.runs.atomic import write_json
from nlora.runs.folder import RunFolder
from nlora.runs.summary import Summary

log = logging.getLogger("nlora")


def write_outcome(run: RunFolder) -> Summary:
    """Writes all three, and returns the summary. A run whose stages hold no adapters has no collisions.

    What goes wrong here is logged and costs the run nothing: its stages are committed, and `nlora analyze` and
    `nlora report` tell the mistake.
    """
    collision = None
    try:
        values = analyze_run(run.folder)
        write_json(run.folder / ANALYSIS_FILE, values)
        collision = collision_of(values)
    except (AdapterError, RunError) as error:
        log.info("no analysis: %s", error)
    summary = run.write_summary(collision)
    try:
        write_report([run.folder], run.folder / REPORT_FILE)
    except NloraError as error:
        log.warning("no report: %s", error)
    return summary
