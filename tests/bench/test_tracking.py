from __future__ import annotations

import pytest

from cedkv import ledger
from cedkv.bench.gate import gate_section
from cedkv.bench.options import Options
from cedkv.bench.tracking import TimedLog, _lost, tracking_section
from cedkv.tracking.writer import RunWriter


def test_steps_are_timed_ticks_are_not_and_everything_is_read_back(store_uri: str) -> None:
    with RunWriter(store_uri, "bench") as run:
        log = TimedLog(run)
        for step in range(3):
            log.log_metrics({ledger.LOSS: 0.5 + step, ledger.LAMBDA_OFF: 2.0}, step)
        log.log_metrics({ledger.LAMBDA_OFF: 9.0}, 3)
    assert len(log.queued) == len(log.logged) == 3
    assert _lost(run.run_id, store_uri, log) == 0
    log.logged[1] = {**log.logged[1], ledger.LOSS: 7.0}
    assert _lost(run.run_id, store_uri, log) == 1


@pytest.mark.slow
def test_logging_and_verdicts_are_measured_and_checked() -> None:
    options = Options(quick=True, repeats=1)
    logging = tracking_section(options)
    assert all(row.agrees for row in logging.rows)
    assert 0 < logging.summary["tracking_share"] < 1
    gates = gate_section(options)
    assert all(row.agrees for row in gates.rows)
    assert gates.summary["gate_seconds"] > 0
