"""The first screen of the README, made from logged runs: `docs/evidence.json` and the gate table.

    python scripts/readme_evidence.py RUN_ID BASELINE_ID    # take two runs from the log: Phase 3 and Phase 2
    python scripts/readme_evidence.py                       # write it again from docs/evidence.json
    python scripts/readme_evidence.py --check               # is everything as the evidence says, and is it current?

Only numbers that the gate evaluator has proven from the per-prompt tables are taken. A test runs the check, so that a
README which no longer fits its evidence, or evidence which no longer fits configs/base.yaml, fails.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cedkv import ledger
from cedkv.config import load_config
from cedkv.config.reference import keys, shown
from cedkv.config.schema import NOT_HASHED
from cedkv.core.errors import UserError
from cedkv.report.tables import jsonable, markdown_table
from cedkv.report.text import as_dict
from cedkv.tracking.reader import read_run
from cedkv.tracking.store import project_root, resolve_uri
from cedkv.train.publish import surroundings

ROOT = Path(__file__).parents[1]
README, EVIDENCE = ROOT / "README.md", ROOT / "docs" / "evidence.json"
START, END = "<!-- evidence -->\n", "<!-- /evidence -->"
CONFIG = "configs/base.yaml"
SHOWN = (
    ledger.NULL_INJECTION_MAX_KL,
    ledger.TEACHER_CACHE_MAX_KL,
    ledger.ON_ACC_TEACHER,
    ledger.ON_GAIN,
    ledger.REL_KL_TO_TEACHER,
    ledger.P99_STRESS,
)
Run = Mapping[str, Any]


def collect(run_ids: Sequence[str], uri: str) -> list[dict[str, Any]]:
    """What the log proves of each run; `UserError` where a gate was inconclusive."""
    from cedkv.release.verdict import verdict_on

    found = []
    for run_id in run_ids:
        record = read_run(run_id, uri)
        verdict = as_dict(verdict_on(record, surroundings(record.experiment_id, uri, remember=False)))
        if verdict["status"] == "inconclusive":
            raise UserError(f"run {run_id} is inconclusive; the README shows runs that the log proves")
        numbers = {item["name"]: item["value"] for item in (*verdict["checks"], *verdict["reported"])}
        found.append(
            {
                "run": run_id,
                "phase": verdict["phase"],
                "date": datetime.fromtimestamp(record.start_time_ms / 1000, tz=UTC).strftime("%Y-%m-%d"),
                "config_hash": record.tags[ledger.TAG_CONFIG_HASH],
                "config": dict(_settings(record.config or {})),
                "model_fingerprint": record.tags[ledger.TAG_MODEL],
                "git_commit": record.tags[ledger.TAG_GIT_COMMIT],
                "git_dirty": record.tags[ledger.TAG_GIT_DIRTY],
                "numbers": {name: value for name, value in numbers.items() if isinstance(value, int | float)},
                "checks": [check for check in verdict["checks"] if check["name"] in SHOWN],
                "exceedances": verdict["exceedances"],
                "reproduction": verdict["reproduction"],
                "certification": verdict["certification"],
            }
        )
    return [jsonable(run) for run in found]


def section(runs: Sequence[Run]) -> str:
    """The part of the README between its marks."""
    trained, baseline = runs
    numbers, repeats = trained["numbers"], trained["reproduction"]["runs"]
    repeated = f"its repeat `{repeats[-1][:8]}` gave the same gates" if repeats else "it was not repeated"
    lines = [
        f"Where it stands, from the log (`{CONFIG}`, run `{trained['run'][:8]}`, {trained['date']}; {repeated}):",
        "",
        *markdown_table(
            ("gate", "check", "value", "limit", ""), [_row(check, numbers) for check in trained["checks"]]
        ),
    ]
    if trained["certification"]:
        lines.append(_sealed(trained["certification"]))
    lines += [
        "",
        (
            f"The baseline, anchors without training (Phase 2, run `{baseline['run'][:8]}`), gains "
            f"{baseline['numbers'][ledger.ON_GAIN]:+.3f} ON and drifts by {baseline['numbers'][ledger.P99_STRESS]:.3g} nats at the "
            f"p99; {baseline['exceedances']} stress prompts are over the limit there, {trained['exceedances']} here."
        ),
    ]
    return "\n".join(lines) + "\n"


def _row(check: Mapping[str, Any], numbers: Mapping[str, float]) -> tuple[str, ...]:
    name, value = check["name"], check["value"]
    told = f"{value:.3g}"
    if name == ledger.ON_GAIN:
        told = f"{value:+.3f} ({numbers[ledger.ON_GAIN_RECOVERED]:.1%} of the teacher's)"
    if name == ledger.P99_STRESS:
        told = f"**{value:.4f} nats** (95 % bound {numbers[ledger.P99_UPPER]:.4f})"
    sign = {"<=": "≤", ">=": "≥", "=": "="}[check["operator"]]
    return (check["group"], f"`{name}`", told, f"{sign} {check['limit']:g}", check["status"])


def _sealed(found: Mapping[str, Any]) -> str:
    return (
        f"| sealed set | prompts over {found['tau']:g} nats | {found['exceedances']} of {found['n']}: with confidence "
        f"{found['confidence']:g} at most {found['upper_rate']:.2%} | ≤ {found['max_rate']:.0%} | {found['status']} |"
    )


def stale(runs: Sequence[Run], readme: str) -> list[str]:
    """What no longer fits: README the evidence, the evidence the configuration or the model."""
    found = []
    if section(runs) != _between(readme):
        found.append("README.md is not what docs/evidence.json gives; run scripts/readme_evidence.py")
    for run in runs:
        for key, was, now in _changed(run):
            found.append(
                f"run {run['run'][:8]} is not of {CONFIG} as it is now ({key}: {was} then, {now} now): run it again, then "
                "scripts/readme_evidence.py RUN_ID BASELINE_ID"
            )
        if run["git_dirty"] != "false":
            found.append(f"run {run['run'][:8]} is of a changed working tree; run it from a clean commit")
    return found


def _changed(run: Run) -> Iterator[tuple[str, str, str]]:
    """Settings that differ from the configuration's as it is. A key that is new since then counts unless it has its default."""
    strict = (
        run["config"]["phase3.runtime.strict_hf"] == "true"
    )  # --phase3-strict-hf, which checks and changes nothing
    config = load_config(ROOT / CONFIG, phase=int(run["phase"]), strict_hf=strict, env={})
    now = dict(_settings(config.model_dump(mode="json")))
    defaults = {key.path: key.default for key in keys()}
    for key in sorted(now.keys() | run["config"].keys()):
        was = run["config"].get(key, defaults.get(key))
        if now.get(key) != was:
            yield key, str(was), str(now.get(key))


def _settings(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every setting that can change a run's numbers: dotted key and value as a configuration writes it."""
    for name, value in config.items():
        if prefix or name not in NOT_HASHED:
            key = f"{prefix}{name}"
            if isinstance(value, Mapping):
                yield from _settings(value, f"{key}.")
            else:
                yield key, shown(value)


def _between(readme: str) -> str:
    return readme.partition(START)[2].partition(END)[0]


def main() -> int:
    """Take, write or check."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", metavar="RUN_ID", help="the trained run, then the baseline")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; status 1 where something is stale"
    )
    arguments = parser.parse_args()
    if arguments.runs:
        uri = resolve_uri(None, os.environ, project_root(Path.cwd()))
        EVIDENCE.write_text(json.dumps(collect(arguments.runs, uri), indent=2) + "\n")
    runs = json.loads(EVIDENCE.read_text())
    if arguments.check:
        problems = stale(runs, README.read_text())
        print("\n".join(problems) or "the README is what the log says")
        return int(bool(problems))
    before, start, rest = README.read_text().partition(START)
    after = rest.partition(END)[2]
    README.write_text(before + start + section(runs) + END + after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
