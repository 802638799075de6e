"""Every check of both gates: at, just within and just over its limit, and every way a log can fail to prove it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from cedkv.core.verdict import Check, GateReport, Status
from cedkv.release.gates import judge, worst_prompts

PASS, FAIL, INCONCLUSIVE = Status.PASS, Status.FAIL, Status.INCONCLUSIVE


def check(report: GateReport, name: str) -> Check:
    (found,) = [item for item in report.checks if item.name == name]
    return found


def test_a_complete_good_run_passes_every_check(runs):
    report = judge(runs.run())
    assert {item.status for item in report.checks} == {PASS}
    assert (report.gate_a, report.gate_b, report.status) == (PASS, PASS, PASS)
    assert [item.name for item in report.of("A")] == [
        "on_eval_sha256",
        "null_injection_max_kl",
        "teacher_cache_max_kl",
        "on_acc_teacher",
        "delta_on_mean",
        "on_gain",
        "rel_kl_to_teacher",
    ]
    assert [item.name for item in report.of("B")] == [
        "stress_source",
        "stress_size",
        "stress_seed",
        "stress_sampling",
        "stress_definition",
        "stress_sha256",
        "off_delta_p99_stress",
    ]


def test_a_run_of_phase_2_is_judged_like_any_other(runs):
    assert judge(runs.run(phase="2")).status is PASS


OVER, UNDER = math.nextafter(0.05, 1.0), math.nextafter(0.05, 0.0)


@pytest.mark.parametrize(("p99", "status"), [(UNDER, PASS), (0.05, PASS), (OVER, FAIL), (7.0, FAIL)])
def test_gate_b_holds_at_its_limit_and_fails_just_over_it(runs, p99, status):
    """Four of 400 prompts may drift without limit: p99 is the fifth largest."""
    report = judge(runs.run(deltas=[0.001] * 395 + [p99] + [9.0] * 4))
    assert check(report, "off_delta_p99_stress").status is status
    assert check(report, "off_delta_p99_stress").value == p99
    assert (report.gate_a, report.gate_b, report.status) == (PASS, status, status)


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        ("null_injection_max_kl", 0.0, PASS),
        ("null_injection_max_kl", 5e-324, FAIL),
        ("teacher_cache_max_kl", 0.0, PASS),
        ("teacher_cache_max_kl", 1e-4, PASS),
        ("teacher_cache_max_kl", math.nextafter(1e-4, 1.0), FAIL),
    ],
)
def test_checks_on_scalars_alone(runs, name, value, status):
    report = judge(runs.with_metric(runs.run(), name, value))
    assert check(report, name).status is status
    assert (report.gate_a, report.gate_b) == (status, PASS)


@pytest.mark.parametrize(
    ("name", "rows", "status"),
    [
        ("on_acc_teacher", {"teacher": 19, "student": 15}, FAIL),
        ("on_acc_teacher", {"teacher": 20, "student": 15}, PASS),
        ("on_gain", {"base": 10, "student": 11}, FAIL),
        ("on_gain", {"base": 10, "student": 12}, PASS),  # 0.12 - 0.10 is 0.01999... in floating point
        ("on_gain", {"base": 10, "student": 0}, FAIL),
        ("delta_on_mean", {"drift": math.nextafter(0.01, 0.0)}, FAIL),
        ("delta_on_mean", {"drift": 0.01}, PASS),
        ("rel_kl_to_teacher", {"rel": 1.0}, PASS),
        ("rel_kl_to_teacher", {"rel": 1.001}, FAIL),
    ],
)
def test_checks_on_the_on_table(runs, name, rows, status):
    report = judge(runs.run(on=runs.on_rows(**rows)))
    assert check(report, name).status is status
    assert check(report, name).n == 100
    assert (report.gate_a, report.gate_b) == (status, PASS)


JUDGED = (
    "null_injection_max_kl",
    "teacher_cache_max_kl",
    "on_acc_teacher",
    "delta_on_mean",
    "on_gain",
    "rel_kl_to_teacher",
    "off_delta_p99_stress",
)


@pytest.mark.parametrize("name", JUDGED)
@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf], ids=str)
def test_a_missing_or_infinite_scalar_never_passes(runs, name, value):
    report = judge(runs.with_metric(runs.run(), name, value))
    assert check(report, name).status is INCONCLUSIVE
    assert "not logged" in check(report, name).reason or "not finite" in check(report, name).reason
    assert report.status is INCONCLUSIVE


@pytest.mark.parametrize("name", JUDGED[:2])
def test_a_negative_divergence_never_passes(runs, name):
    assert check(judge(runs.with_metric(runs.run(), name, -0.5)), name).status is INCONCLUSIVE


@pytest.mark.parametrize("name", JUDGED[2:])
def test_a_scalar_that_disagrees_with_its_table_never_passes(runs, name):
    run = runs.run()
    report = judge(runs.with_metric(run, name, run.metrics[name] * 1.001))
    assert check(report, name).status is INCONCLUSIVE
    assert "disagrees" in check(report, name).reason
    close = judge(runs.with_metric(run, name, run.metrics[name] * (1 + 1e-7)))  # a float32 round trip
    assert close.status is PASS


@pytest.mark.parametrize("name", ["on_gain", "off_delta_p99_stress"])
def test_a_scalar_made_to_pass_is_not_believed(runs, name):
    bad = runs.run(deltas=[1.0] * 400, on=runs.on_rows(student=10))
    assert judge(bad).status is FAIL
    good = runs.with_metric(bad, name, 0.04)
    assert check(judge(good), name).status is INCONCLUSIVE


def test_the_tables_number_is_judged_not_the_scalars(runs):
    """Within the tolerance of the comparison a scalar under the limit does not rescue a table over it."""
    run = runs.with_metric(runs.run(deltas=[OVER] * 400), "off_delta_p99_stress", 0.05)
    assert check(judge(run), "off_delta_p99_stress").status is FAIL


@pytest.mark.parametrize(
    ("table", "names"),
    [("on_table", JUDGED[2:6]), ("stress_table", JUDGED[6:])],
)
@pytest.mark.parametrize("rows", [None, ()], ids=["missing", "empty"])
def test_without_its_table_a_scalar_proves_nothing(runs, table, names, rows):
    report = judge(replace(runs.run(), **{table: rows}))
    assert {check(report, name).status for name in names} == {INCONCLUSIVE}
    assert report.status is INCONCLUSIVE


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.01])
def test_one_row_that_is_no_divergence_spoils_its_table(runs, value):
    run = runs.run()
    rows = (replace(run.stress_table[0], stress_delta=value), *run.stress_table[1:])
    report = judge(replace(run, stress_table=rows))
    assert (report.gate_a, report.gate_b) == (PASS, INCONCLUSIVE)
    rows = (replace(run.on_table[0], kl_student_base=value), *run.on_table[1:])
    report = judge(replace(run, on_table=rows))
    assert check(report, "delta_on_mean").status is INCONCLUSIVE
    assert check(report, "on_gain").status is PASS


def test_nothing_to_divide_by_is_no_result(runs):
    rows = tuple(replace(row, kl_teacher_base=0.0) for row in runs.on_rows())
    report = judge(replace(runs.run(), on_table=rows))
    assert check(report, "rel_kl_to_teacher").status is INCONCLUSIVE


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"status": "RUNNING"}, "run_status"),
        ({"status": "FAILED"}, "run_status"),
        ({"status": "KILLED"}, "run_status"),
        ({"lifecycle": "deleted"}, "run_lifecycle"),
    ],
)
@pytest.mark.parametrize("deltas", [[0.001] * 400, [1.0] * 400], ids=["good", "bad"])
def test_an_unfinished_run_is_inconclusive_whatever_its_numbers(runs, change, name, deltas):
    report = judge(replace(runs.run(deltas=deltas), **change))
    assert check(report, name).status is INCONCLUSIVE
    assert (report.gate_a, report.gate_b, report.status) == (INCONCLUSIVE,) * 3
    assert name in check(report, "on_gain").reason


@pytest.mark.parametrize(
    ("tag", "value", "name"),
    [
        ("cedkv.schema", "2", "log_schema"),
        ("cedkv.schema", None, "log_schema"),
        ("cedkv.phase", "1", "phase"),
        ("cedkv.phase", None, "phase"),
        ("cedkv.changed", '{"phase3.train.lr": [0.01, 0.02]}', "changed_on_the_way"),
        ("cedkv.changed", '{"phase3.train.lr": [0.01, 0.0', "changed_on_the_way"),
        ("cedkv.source.off_delta_p99_stress", "hard_pool", "stress_source"),
        ("cedkv.source.off_delta_p99_stress", None, "stress_source"),
        ("cedkv.hash.stress", "0" * 64, "stress_sha256"),
        ("cedkv.hash.stress", None, "stress_sha256"),
        ("cedkv.hash.on_eval", "0" * 64, "on_eval_sha256"),
    ],
)
def test_wrong_or_missing_tags(runs, tag, value, name):
    report = judge(runs.with_tag(runs.run(), tag, value))
    assert check(report, name).status is INCONCLUSIVE
    assert report.status is INCONCLUSIVE


def test_a_run_that_went_on_with_another_number_of_processes_is_judged(runs):
    changed = runs.with_tag(runs.run(), "cedkv.changed", '{"cedkv.world_size": ["1", "2"]}')
    assert judge(changed).status is judge(runs.run()).status is PASS


@pytest.mark.parametrize(
    ("path", "value", "name"),
    [
        ("schema", 2, "log_schema"),
        ("stress.size", 399, "stress_size"),
        ("stress.size", ..., "stress_size"),
        ("stress.seed", 1, "stress_seed"),
        ("stress.seed", "3407", "stress_seed"),
        ("stress.sampling", "every_tick", "stress_sampling"),
        ("stress.definition", "mean_over_states", "stress_definition"),
        ("stress.definition", ..., "stress_definition"),
        ("stress.sha256", "0" * 64, "stress_sha256"),
        ("stress.sha256", ..., "stress_sha256"),
        ("on_eval.sha256", "0" * 64, "on_eval_sha256"),
    ],
)
def test_a_data_specification_that_is_not_what_was_configured(runs, path, value, name):
    report = judge(runs.with_spec(runs.run(), path, value))
    assert check(report, name).status is INCONCLUSIVE
    assert report.status is INCONCLUSIVE


@pytest.mark.parametrize(
    ("key", "value", "name"),
    [
        ("size", 2048, "stress_size"),
        ("size", ..., "stress_size"),
        ("seed", 1, "stress_seed"),
        ("seed", ..., "stress_seed"),
        ("sampling", "other", "stress_sampling"),
    ],
)
def test_another_stress_set_than_configured(runs, key, value, name):
    report = judge(runs.with_config(runs.run(), f"phase3.eval.off_fixed_stress.{key}", value))
    assert check(report, name).status is INCONCLUSIVE
    assert (report.gate_a, report.gate_b) == (PASS, INCONCLUSIVE)
    assert "not judged" in check(report, "off_delta_p99_stress").reason


def test_prompts_exchanged_in_the_table_are_noticed(runs):
    run = runs.run()
    easy = replace(run.stress_table[-1], prompt="Is 1 + 1 two?")
    report = judge(replace(run, stress_table=(*run.stress_table[:-1], easy)))
    assert check(report, "stress_sha256").status is INCONCLUSIVE
    on = replace(run.on_table[0], answer="7")
    report = judge(replace(run, on_table=(on, *run.on_table[1:])))
    assert check(report, "on_eval_sha256").status is INCONCLUSIVE


def test_dropped_and_repeated_prompts_are_noticed(runs):
    run = runs.run()
    report = judge(replace(run, stress_table=run.stress_table[:-10]))
    assert check(report, "stress_size").status is INCONCLUSIVE
    assert "390" in check(report, "stress_size").reason
    repeated = tuple(replace(row, prompt="again") for row in run.stress_table)
    assert check(judge(replace(run, stress_table=repeated)), "stress_size").value == 1


def test_text_that_cannot_be_hashed_is_inconclusive_not_a_crash(runs):
    run = runs.run()
    broken = replace(run.stress_table[0], prompt="\ud800")
    assert judge(replace(run, stress_table=(broken, *run.stress_table[1:]))).gate_b is INCONCLUSIVE


@pytest.mark.parametrize(
    "key",
    [
        "on_gain_min",
        "off_delta_p99_max",
        "delta_on_min",
        "teacher_min_on_acc",
        "rel_kl_to_teacher_max",
        "teacher_cache_kl_max",
        "certified",
    ],
)
@pytest.mark.parametrize("value", [..., None, "0.5", math.nan, math.inf], ids=str)
def test_a_limit_that_the_configuration_does_not_state_is_never_assumed(runs, key, value):
    report = judge(runs.with_config(runs.run(), f"phase3.thresholds.{key}", value))
    assert report.status is INCONCLUSIVE


def test_a_log_with_nothing_in_it_is_inconclusive(runs):
    run = runs.run()
    bare = replace(
        run,
        tags={},
        metrics={},
        config=None,
        data_spec=None,
        stress_table=None,
        on_table=None,
        problems=("gone",),
    )
    report = judge(bare)
    assert {item.status for item in report.checks} == {PASS, INCONCLUSIVE}
    assert report.status is INCONCLUSIVE
    assert any("gone" in note for note in report.notes)


def test_a_proven_failure_stays_a_failure_beside_a_gap_in_the_evidence(runs):
    run = runs.with_metric(runs.run(deltas=[1.0] * 400), "teacher_cache_max_kl", None)
    report = judge(run)
    assert (report.gate_a, report.gate_b, report.status) == (INCONCLUSIVE, FAIL, FAIL)


def test_certified_runs_are_judged_by_the_upper_bound(runs):
    deltas = [0.001] * 2035 + [
        0.06
    ] * 13  # p99 is the 21st largest; the bound, the 13th largest, is over the limit
    assert judge(runs.run(deltas=deltas)).gate_b is PASS
    report = judge(runs.run(deltas=deltas, thresholds={"certified": True}))
    assert check(report, "off_delta_p99_stress").status is PASS
    assert check(report, "off_delta_p99_upper").status is FAIL
    assert (report.gate_b, report.exceedances, report.allowed) == (FAIL, 13, 12)
    report = judge(runs.run(deltas=[0.001] * 2036 + [0.06] * 12, thresholds={"certified": True}))
    assert (report.gate_b, report.exceedances, report.allowed) == (PASS, 12, 12)


def test_too_few_prompts_for_a_bound_cannot_be_certified(runs):
    report = judge(runs.run(deltas=[0.001] * 298, thresholds={"certified": True}))
    assert check(report, "off_delta_p99_upper").status is INCONCLUSIVE
    assert "too few" in check(report, "off_delta_p99_upper").reason
    assert judge(runs.run(deltas=[0.001] * 298)).gate_b is PASS


def test_loosened_limits_and_small_scale_are_named(runs):
    notes = " | ".join(judge(runs.run(thresholds={"off_delta_p99_max": 1.0})).notes)
    assert "off_delta_p99_max is 1, looser than the design's 0.05" in notes
    assert "size 400" in notes
    full = judge(runs.run(deltas=[0.001] * 2048, thresholds={"off_delta_p99_max": 0.04}))
    assert full.notes == ()


def test_margins_are_positive_on_the_passing_side(runs):
    report = judge(runs.run(deltas=[0.03] * 400))
    assert check(report, "off_delta_p99_stress").margin == pytest.approx(0.02)
    assert check(report, "on_gain").margin == pytest.approx(0.48)
    assert check(report, "null_injection_max_kl").margin is None
    assert check(judge(runs.run(deltas=[0.07] * 400)), "off_delta_p99_stress").margin == pytest.approx(-0.02)


def test_reported_numbers_are_recomputed_from_the_tables(runs):
    run = runs.run()
    for item in judge(run).reported:
        assert item.problem == ""
        assert item.value == pytest.approx(run.metrics[item.name])


def test_the_worst_prompts_are_the_worst_one_percent_hardest_first(runs):
    run = runs.run(deltas=[i / 10_000 for i in range(2048)])
    worst = judge(run).worst
    assert [prompt.id for prompt in worst] == [f"s{i}" for i in range(2047, 2026, -1)]
    assert worst[-1].stress_delta == run.metrics["off_delta_p99_stress"]
    row = run.stress_table[2047]
    assert (worst[0].prompt, worst[0].state, worst[0].student_top) == (row.prompt, row.state, row.student_top)


def test_prompts_without_a_finite_drift_come_first(runs):
    run = runs.run(deltas=[i / 10_000 for i in range(2048)])
    rows = (*run.stress_table[1:], replace(run.stress_table[0], stress_delta=math.nan))
    assert worst_prompts(rows)[0].id == "s0"
    assert worst_prompts(()) == ()
