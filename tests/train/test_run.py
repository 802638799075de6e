"""A whole run in this process: what the log holds afterwards, and how a run ends that cannot go on."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import cedkv
from cedkv import ledger
from cedkv.config import config_hash, load
from cedkv.core.errors import UserError
from cedkv.core.hashing import content_hash
from cedkv.data.build import build_corpus
from cedkv.data.records import hashes
from cedkv.injection import inject
from cedkv.memory.export import FORMAT
from cedkv.release.measure import on_metrics
from cedkv.tracking.reader import latest_run, list_runs, metric_history, read_run, read_traces
from cedkv.train import loop, main
from cedkv.train.loop import ConstraintViolatedError
from cedkv.train.main import run_training


class Logged:
    """Two runs of one store: the baseline and a trained one."""

    def __init__(self, uri: str, config, runs: dict[int, str]) -> None:
        self.uri, self.config, self.runs = uri, config, runs

    def record(self, phase: int = 3):
        return read_run(self.runs[phase], self.uri)

    def file(self, path: str, phase: int = 3) -> Path:
        (found,) = Path(self.uri.removeprefix("sqlite:///")).parent.glob(
            f"**/{self.runs[phase]}/artifacts/{path}"
        )
        return found


@pytest.fixture(scope="module")
def logged(small_config, store_template, tmp_path_factory) -> Logged:
    uri = f"sqlite:///{tmp_path_factory.mktemp('run') / 'mlflow.db'}"
    Path(uri.removeprefix("sqlite:///")).write_bytes(store_template.read_bytes())
    settings = (f"tracking.uri={uri}", "tracking.run_name=small")
    runs = {
        phase: run_training(
            small_config(*settings, phase=phase), phase=phase, explore=phase == 3, progress=False
        )
        for phase in (2, 3)
    }
    return Logged(uri, small_config(*settings), runs)


# --------------------------------------------------------------------------------------------------------- what is logged
TRACES = (ledger.LAMBDA_TRACE, ledger.TOPK_TRACE, ledger.LOSS_CURVE, ledger.ATOM_TYPE_MASS, ledger.WARN_TRACE)


def test_the_run_is_finished_and_says_where_it_comes_from(logged):
    record = logged.record()
    corpus_hashes = {
        f"cedkv.hash.{name}": part["sha256"] for name, part in hashes(build_corpus(logged.config)).items()
    }
    assert (record.status, record.name) == ("FINISHED", "small")
    assert corpus_hashes.items() <= dict(record.tags).items()
    assert len(corpus_hashes) == 6
    stated = {name: value for name, value in vars(ledger).items() if name.startswith("TAG_")}
    absent = {value for value in stated.values() if value not in record.tags}
    assert absent == {
        ledger.TAG_ERROR,
        ledger.TAG_REPRODUCES,
        ledger.TAG_CERTIFIED,
        ledger.TAG_DELIMITER,
        ledger.TAG_RESUMED,
        ledger.TAG_CHANGED,
        *(ledger.TAG_PARENT, ledger.TAG_STUDY, ledger.TAG_SCALE, ledger.TAG_TRIAL),
    }
    assert record.tags[ledger.TAG_CONFIG_HASH] == config_hash(logged.config)
    assert record.tags[ledger.TAG_PHASE] == "3"
    assert record.tags[ledger.TAG_KEPT] == "last"
    assert record.tags[ledger.TAG_EXPLORE_DEFAULT] == "true"
    assert record.tags[ledger.TAG_WORLD_SIZE] == "1"
    assert f"cedkv {cedkv.__version__}" in record.tags[ledger.TAG_ENVIRONMENT]
    assert ledger.TAG_EXPLORE_DEFAULT not in logged.record(2).tags


def test_every_metric_of_the_ledger_is_logged(logged):
    skip = {"TRUE", "KEY", "VALUE", "CONTENT", "NUMBER", "FUNCTION", "DELIMITER", "SCHEMA_VERSION"}
    skip |= {"RESIDUAL_SHARE"}  # of runs that learn one
    names = {
        value
        for name, value in vars(ledger).items()
        if name.isupper() and isinstance(value, str) and name not in skip
        if not name.startswith(("TAG_", "PHASE_", "SOURCE_", "TUNE_"))
        and not name.endswith("_PREFIX")
        and "." not in value
        if value not in {ledger.REPORT_HTML, ledger.CONFIG_RESOLVED}
    }
    names |= {ledger.atom_mass(kind) for kind in ledger.ATOM_TYPES}
    names |= {ledger.seconds(part) for part in ledger.PARTS}
    assert names - logged.record().metrics.keys() == set()
    finals = {
        *on_metrics(logged.record().on_table),
        ledger.P99_STRESS,
        ledger.NULL_INJECTION_MAX_KL,
        ledger.TEACHER_CACHE_MAX_KL,
    }
    assert finals <= logged.record(2).metrics.keys()


@pytest.mark.parametrize("phase", [2, 3])
def test_parts_of_the_wall_time_add_up_to_the_whole(logged, phase):
    metrics = logged.record(phase).metrics
    parts = {part: metrics[ledger.seconds(part)] for part in ledger.PARTS if ledger.seconds(part) in metrics}
    total = metrics[ledger.SECONDS_TOTAL]
    expected = {"load", "teacher", "capture", "trunk", "tick", "log", "finish"}
    assert parts.keys() == expected | ({"train", "hard_pool", "verify"} if phase == 3 else set())
    assert all(seconds > 0 for seconds in parts.values())
    assert 0.9 * total <= sum(parts.values()) <= total * (1 + 1e-9)


def test_at_the_end_a_run_says_where_its_time_went(small_config, store_uri, capsys):
    run_training(small_config(f"tracking.uri={store_uri}", phase=2), phase=2)
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(r"cedkv: [\d.]+ s: \w+ [\d.]+(, \w+ [\d.]+)*", last)


def test_every_artifact_of_the_ledger_is_there_and_parses(logged):
    paths = {
        value
        for name, value in vars(ledger).items()
        if isinstance(value, str) and name.isupper() and "." in value
        if not name.startswith(("TAG_", "TUNE_")) and not name.endswith("_PREFIX")
    }
    assert len(paths) == 22
    paths.remove(ledger.CERTIFICATE)  # only a certification leaves one
    for path in paths:
        text = logged.file(path)
        if path.endswith(".json"):
            assert json.loads(text.read_text())
        elif path.endswith(".jsonl"):
            assert all(isinstance(json.loads(line), dict) for line in text.read_text().splitlines())
        else:
            assert text.stat().st_size > 100
    assert read_traces(logged.runs[3], logged.uri).keys() == set(TRACES)
    assert read_traces(logged.runs[2], logged.uri) == {}
    assert logged.record().problems == logged.record(2).problems == ()


def test_the_resolved_configuration_makes_the_same_run(logged):
    again = load(logged.file(ledger.CONFIG_RESOLVED), env={}).config
    assert config_hash(again) == config_hash(logged.config)
    assert again.phase3 == logged.config.phase3


def test_traces_and_metrics_of_the_store_tell_the_same_story(logged):
    traces = read_traces(logged.runs[3], logged.uri)
    columns = {
        ledger.LOSS_CURVE: {
            name: name for name in (ledger.LOSS, ledger.LOSS_ON, ledger.LOSS_OFF, ledger.LOSS_STR)
        },
        ledger.LAMBDA_TRACE: {name: name for name in (ledger.P99_RAW, ledger.P99_EMA)},
        ledger.ATOM_TYPE_MASS: {ledger.atom_mass(kind): kind for kind in ledger.ATOM_TYPES},
        ledger.WARN_TRACE: {
            ledger.WARN_CONSECUTIVE: "consecutive",
            ledger.WARN_TRIGGERED: "triggered",
            ledger.P99_STRESS: "value",
        },
    }
    names = [metric for pairs in columns.values() for metric in pairs]
    history = metric_history(logged.runs[3], [*names, ledger.TOPK], logged.uri)
    for trace, pairs in columns.items():
        for metric, column in pairs.items():
            points = [(p.step, p.value) for p in history[metric]]
            rows = [(row["step"], row[column]) for row in traces[trace]]
            assert points[: len(rows)] == rows, (metric, trace)
            assert len(points) - len(rows) == (metric == ledger.P99_STRESS)  # once more at the end, as judged
    k = [point.value for point in history[ledger.TOPK]]
    starts = [step for step in range(12) if step == 0 or k[step] != k[step - 1]]
    assert [(row["step"], row["topk"]) for row in traces[ledger.TOPK_TRACE]] == [(s, k[s]) for s in starts]


def test_the_on_table_holds_every_evaluation_prompt_and_gives_the_logged_scalars(logged):
    record = logged.record()
    corpus = build_corpus(logged.config)
    rows = [
        {"id": r.id, "document": r.document, "prompt": r.prompt, "answer": r.answer, "split": "eval"}
        for r in record.on_table
    ]
    assert content_hash(rows) == record.tags[ledger.TAG_HASH_ON_EVAL] == hashes(corpus)["on_eval"]["sha256"]
    for name, value in on_metrics(record.on_table).items():
        assert record.metrics[name] == pytest.approx(value, nan_ok=True)
    assert record.metrics[ledger.NULL_INJECTION_MAX_KL] == 0.0
    assert 0 <= record.metrics[ledger.TEACHER_CACHE_MAX_KL] < 1e-6
    assert record.metrics[ledger.DELTA_ON_MEAN] > 0.01
    reads = [v for name, v in record.metrics.items() if name.startswith(ledger.TEACHER_READS_PREFIX)]
    assert sum(reads) == pytest.approx(1.0, abs=1e-5)


def test_the_on_table_measures_the_memory_that_is_kept_prompt_by_prompt(logged, train_small):
    """Each prompt alone, its document's state of the final k injected, against the logged columns."""
    trainer = train_small().trainer
    experiment, states = trainer.experiment, trainer.bank.states(2).detach()
    corrects = []
    measured = zip(logged.record().on_table, experiment.encoded.on_eval, experiment.teacher_eval, strict=True)
    for row, prompt, reads in measured:
        ids, answer = torch.tensor([prompt.prompt + prompt.answer[:-1]]), torch.tensor(prompt.answer)
        with torch.no_grad(), inject(trainer.model, states.select(torch.tensor([prompt.document]))):
            logits = trainer.model(input_ids=ids).logits[0, -len(answer) :]
        log_probs = logits.double().log_softmax(-1)
        assert row.student_logp == pytest.approx(log_probs.gather(1, answer[:, None]).sum().item(), rel=1e-5)
        corrects.append(bool((log_probs.argmax(-1) == answer).all()))
        teacher = reads.double()
        divergence = (teacher.exp() * (teacher - log_probs)).sum(-1).mean().item()
        assert row.kl_teacher_student == pytest.approx(divergence, rel=1e-4)
        assert row.tokens == len(answer)
    assert [row.student_correct for row in logged.record().on_table] == corrects


def test_a_token_beyond_the_tokenizer_still_has_a_name(logged):
    """The model's vocabulary is padded; a null in the table would make the whole table unreadable."""
    tops = {top for row in logged.record().stress_table for top in (row.base_top, row.student_top)}
    assert all(isinstance(top, str) and top for top in tops)
    assert any(top.startswith("<token ") for top in tops)


def test_the_worst_prompts_are_those_of_the_table(logged):
    table = logged.record().stress_table
    (worst,) = json.loads(logged.file(ledger.STRESS_TOP).read_text())
    assert worst["stress_delta"] == max(row.stress_delta for row in table)


def test_the_phases_share_model_and_data_and_differ_in_what_was_trained(logged):
    baseline, trained = logged.record(2), logged.record()
    same = [name for name in baseline.tags if name.startswith("cedkv.hash.")] + [ledger.TAG_MODEL]
    assert all(baseline.tags[name] == trained.tags[name] for name in same)
    assert [row.prompt for row in baseline.stress_table] == [row.prompt for row in trained.stress_table]
    assert baseline.metrics[ledger.P99_STRESS] != trained.metrics[ledger.P99_STRESS]
    assert latest_run("cedkv", logged.uri).run_id == trained.run_id


def test_the_report_was_attached(logged):
    page = logged.file(ledger.REPORT_MARKDOWN).read_text()
    for name in (
        ledger.P99_STRESS,
        ledger.P99_TYPICAL,
        ledger.LOSS_ON,
        ledger.LOSS_OFF,
        ledger.LOSS_STR,
        "lambda_off",
    ):
        assert name in page
    assert json.loads(logged.file(ledger.REPORT_JSON).read_text())
    assert "plotly" in logged.file(ledger.REPORT_HTML).read_text().casefold()
    assert logged.file(ledger.REPORT_MARKDOWN, phase=2).read_text()


# --------------------------------------------------------------------------------------------------------------- memory
def test_the_memory_on_disk_is_the_memory_that_was_measured(logged, train_small):
    """The run again without a log: the same keys and values, bit for bit."""
    bank = train_small().trainer.bank
    states = bank.states(2)
    tensors = load_file(logged.file(ledger.MEMORY_TENSORS))
    expected = {"logits", "weights", "anchors", "candidates", "candidate_types"}
    expected |= {f"{kind}.{layer}" for kind in ("keys", "values") for layer in (2, 3)}
    assert tensors.keys() == expected
    for layer in (2, 3):
        assert torch.equal(tensors[f"keys.{layer}"], states.keys[layer])
        assert torch.equal(tensors[f"values.{layer}"], states.values[layer])
        assert tensors[f"keys.{layer}"].shape == (3, 2, 3, 8)
    assert torch.equal(tensors["logits"], bank.logits)
    for name in ("anchors", "candidates", "candidate_types"):
        assert torch.equal(tensors[name], getattr(bank, name))
    assert ((tensors["weights"] > 0).sum(-1) <= 2).all()
    torch.testing.assert_close(tensors["weights"].sum(-1), torch.ones(3, 1, 1, 3))


def test_the_memory_says_what_it_is_and_where_its_slots_stand(logged, train_small):
    bank = train_small().trainer.bank
    meta = json.loads(logged.file(ledger.MEMORY_META).read_text())
    record = logged.record()
    assert meta["format"] == FORMAT
    assert meta["origin"]["model_fingerprint"] == record.tags[ledger.TAG_MODEL]
    assert meta["origin"]["config_hash"] == record.tags[ledger.TAG_CONFIG_HASH]
    assert meta["documents"] == ["doc-0000", "doc-0001", "doc-0002"]
    assert (meta["mode"], meta["share"], meta["topk"]) == ("v_only", "shared", 2)
    assert meta["layers"] == {"injection": [2, 3], "mixture": [2, 3]}
    assert (meta["slots"], meta["sink_slots"]) == (3, 0)
    anchors = [[(a["chunk"], a["layer"]) for a in document] for document in meta["anchors"]]
    assert anchors == [[(0, layer) for layer in document] for document in bank.anchor_layers]
    assert meta["atom_types"] == list(ledger.ATOM_TYPES)
    baseline = json.loads(logged.file(ledger.MEMORY_META, phase=2).read_text())
    assert (baseline["mode"], baseline["topk"], baseline["anchors"]) == ("anchor", 12, meta["anchors"])


def test_the_memory_file_holds_nothing_but_tensors(logged):
    with safe_open(logged.file(ledger.MEMORY_TENSORS), framework="pt") as file:
        assert not file.metadata()
        assert len(list(file.keys())) == 9


# --------------------------------------------------------------------------------------------------------------- endings
def only_run(uri: str):
    (run,) = list_runs("cedkv", uri)
    return read_run(run.run_id, uri)


def start(small_config, uri: str, *overrides: str) -> str:
    return run_training(small_config(f"tracking.uri={uri}", *overrides), phase=3, progress=False)


VIOLATED = (
    "phase3.thresholds.off_delta_p99_max=1e-6",
    "phase3.train.constraint_warn.patience_eval_ticks=1",
)


def test_a_confirmed_abort_ends_failed_with_its_traces(small_config, store_uri):
    with pytest.raises(ConstraintViolatedError):
        start(small_config, store_uri, *VIOLATED, "phase3.train.constraint_warn.action=abort")
    run = only_run(store_uri)
    assert run.status == "FAILED"
    assert run.tags[ledger.TAG_ERROR].startswith("ConstraintViolatedError: step 0: off_delta_p99_stress")
    traces = read_traces(run.run_id, store_uri)
    assert traces[ledger.WARN_TRACE][0]["triggered"]
    assert run.stress_table is None


def test_an_early_stop_ends_finished_with_the_stress_of_what_it_kept(small_config, store_uri):
    start(small_config, store_uri, *VIOLATED, "phase3.train.constraint_warn.action=early_stop")
    run = only_run(store_uri)
    assert run.status == "FINISHED"
    assert run.metrics[ledger.P99_STRESS] == max(row.stress_delta for row in run.stress_table)
    traces = read_traces(run.run_id, store_uri)
    assert traces[ledger.LOSS_CURVE] == []
    assert [row["step"] for row in traces[ledger.LAMBDA_TRACE]] == [0]


def test_an_exception_in_a_step_ends_failed_and_keeps_what_was_traced(small_config, store_uri, monkeypatch):
    compute, calls = loop.loss_terms, []

    def broken(*args, **options):
        calls.append(1)
        if len(calls) == 7:
            raise RuntimeError("out of luck")
        return compute(*args, **options)

    monkeypatch.setattr(loop, "loss_terms", broken)
    with pytest.raises(RuntimeError, match="out of luck"):
        start(small_config, store_uri)
    run = only_run(store_uri)
    assert (run.status, run.tags[ledger.TAG_ERROR]) == ("FAILED", "RuntimeError: out of luck")
    traces = read_traces(run.run_id, store_uri)
    assert [row["step"] for row in traces[ledger.LOSS_CURVE]] == list(range(6))
    assert traces.keys() == set(TRACES)


def test_ctrl_c_ends_killed(small_config, store_uri, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "on_rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        start(small_config, store_uri)
    assert only_run(store_uri).status == "KILLED"


def test_numbers_that_are_not_finite_are_logged_as_such_and_counted(small_config, store_uri, monkeypatch):
    compute = loop.loss_terms

    def broken(*args, **options):
        terms = compute(*args, **options)
        return type(terms)(
            terms.on * math.nan, terms.off, terms.structure, terms.slot_mass_on, terms.slot_mass_off
        )

    monkeypatch.setattr(loop, "loss_terms", broken)
    start(small_config, store_uri, "phase3.train.steps=3")
    run = only_run(store_uri)
    assert math.isnan(run.metrics[ledger.LOSS])
    assert run.metrics[ledger.NONFINITE_STEPS] == 3
    assert run.metrics[f"nonfinite/{ledger.LOSS}"] == 3
    assert [row[ledger.LOSS_ON] for row in read_traces(run.run_id, store_uri)[ledger.LOSS_CURVE]] == [
        None
    ] * 3
    assert math.isfinite(run.metrics[ledger.P99_STRESS])


def test_steps_in_a_row_that_are_not_finite_end_the_run_with_the_memory_as_it_was(
    small_config, store_uri, monkeypatch, capsys
):
    from cedkv.train.finite import NonFiniteError

    compute, calls = loop.loss_terms, []

    def broken(*args, **options):
        terms = compute(*args, **options)
        calls.append(1)
        bad = len(calls) == 3 or len(calls) > 5  # one alone, then all: steps 2, and from 5 on
        return replace(terms, off=terms.off * math.inf) if bad else terms

    monkeypatch.setattr(loop, "loss_terms", broken)
    with pytest.raises(
        NonFiniteError, match=r"3 steps in a row were not finite, since step 5 \(phase3_loss, phase3_loss_off"
    ):
        start(small_config, store_uri, "phase3.train.nonfinite_patience=3", "phase3.train.lr=0.1")
    run = only_run(store_uri)
    assert run.status == "FAILED"
    assert run.tags[ledger.TAG_ERROR].startswith("NonFiniteError: 3 steps in a row")
    assert "ON prompts doc-" in run.tags[ledger.TAG_ERROR]
    assert run.metrics[ledger.NONFINITE_STEPS] == 4
    told = [line for line in capsys.readouterr().err.splitlines() if "the step is skipped" in line]
    assert len(told) == 2  # one line where a row begins, not one for each step
    (tensors,) = Path(store_uri.removeprefix("sqlite:///")).parent.glob(
        f"**/{run.run_id}/**/{ledger.MEMORY_TENSORS}"
    )
    assert all(tensor.isfinite().all() for tensor in load_file(tensors).values())


def test_a_world_without_a_launcher_is_refused_before_anything_else(small_config, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UserError, match="nothing says where the processes meet"):
        start(small_config, f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert list(tmp_path.iterdir()) == []
