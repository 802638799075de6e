"""After a run has ended: judge it from its log and attach the report and the figure to it."""

from __future__ import annotations

from cedkv import ledger
from cedkv.release.evidence import number
from cedkv.release.gates import judge
from cedkv.report import run_page
from cedkv.report.figures import training_html
from cedkv.report.run_report import run_report, to_json
from cedkv.tracking.attach import attach
from cedkv.tracking.reader import read_run, read_traces


def publish(run_id: str, uri: str) -> None:
    """Attach `report/report.md`, `report/report.json` and, for a trained run, the figure; all from the log alone."""
    record, traces = read_run(run_id, uri), read_traces(run_id, uri)
    verdict = judge(record)
    content = run_report(record, verdict, None, traces)
    files = {
        ledger.REPORT_MARKDOWN: run_page.to_markdown(content, verdict, None),
        ledger.REPORT_JSON: to_json(content),
    }
    if any(traces.values()):
        files[ledger.FIGURES] = training_html(
            traces,
            p99_limit=number(record.config, "phase3.thresholds.off_delta_p99_max"),
            delimiter_cap=number(record.config, "phase3.candidate.delimiter.mass_cap"),
            title=record.name,
        )
    attach(run_id, uri, files)
