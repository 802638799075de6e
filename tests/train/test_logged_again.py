"""Certification and reproduction of real runs: what they prove, what they refuse, what a crash costs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cedkv import ledger
from cedkv.cli import main as command_line
from cedkv.core.errors import UserError
from cedkv.core.verdict import Reproduced, Status
from cedkv.data.build import build_corpus
from cedkv.data.encode import encode_off
from cedkv.evaluate import stress
from cedkv.models.load import load_model
from cedkv.tracking.ledgers import enter_certified, read_ledgers
from cedkv.tracking.reader import list_runs, read_run
from cedkv.tracking.store import open_client
from cedkv.train import certification, publish
from cedkv.train.certification import BudgetSpentError, certify
from cedkv.train.logged import config_of, memory_of
from cedkv.train.main import run_training
from cedkv.train.reproduction import reproduce

SIZES = ("phase3.train.steps=4", "phase3.eval.off_sealed.size=300")


@pytest.fixture(scope="module")
def trained(small_config, store_template, tmp_path_factory):
    """A store with one trained run, to be copied."""
    path = tmp_path_factory.mktemp("again") / "mlflow.db"
    path.write_bytes(store_template.read_bytes())
    uri = f"sqlite:///{path}"
    config = small_config(f"tracking.uri={uri}", "tracking.experiment=again", *SIZES)
    return uri, run_training(config, phase=3, explore=True, progress=False)


@pytest.fixture
def run(trained, tmp_path):
    """(uri, run id, experiment id) of the trained run, in a store of the test's own."""
    import shutil

    uri, run_id = trained
    shutil.copytree(Path(uri.removeprefix("sqlite:///")).parent, tmp_path / "store")
    own = f"sqlite:///{tmp_path / 'store' / 'mlflow.db'}"
    return own, run_id, read_run(run_id, own).experiment_id


# -------------------------------------------------------------------------------------------------------- certification
def test_a_certificate_states_what_plain_forward_passes_measure(run):
    uri, run_id, _ = run
    found = certify(run_id, uri).certification
    record = read_run(run_id, uri)
    config = config_of(record)
    loaded = load_model(config.model_source, device="cpu")
    sealed = build_corpus(config).sealed
    prompts = [row.prompt for row in encode_off(loaded.tokenizer, sealed, loaded.context_length)]
    states = memory_of(record, uri).states
    deltas = stress(loaded.model, states, prompts, batch_rows=64, plain=True).delta
    logged = torch.tensor(record.certificate["deltas"])
    torch.testing.assert_close(logged, deltas, rtol=1e-4, atol=1e-6)
    assert (found.n, found.attempt, found.max_attempts) == (300, 1, 5)
    assert found.exceedances == int((logged > 0.05).sum())
    assert found.status is (Status.PASS if found.upper_rate <= 0.01 else Status.FAIL)
    assert record.tags[ledger.TAG_CERTIFIED] == found.status


def test_no_sealed_prompt_is_written_anywhere(run):
    uri, run_id, _ = run
    certify(run_id, uri)
    sealed = {row.prompt for row in build_corpus(config_of(read_run(run_id, uri))).sealed}
    folder = Path(uri.removeprefix("sqlite:///")).parent
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(json.dumps(prompt).encode() in content for prompt in sealed), path


def test_each_attempt_is_counted_and_a_crashed_one_too(run, monkeypatch):
    uri, run_id, experiment = run
    certify(run_id, uri)

    def crash(*_args, **_options):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(certification, "stress", crash)
        with pytest.raises(RuntimeError, match="out of memory"):
            certify(run_id, uri)
    assert certify(run_id, uri).certification.attempt == 3
    assert len(read_ledgers(experiment, uri).certified) == 3


def test_without_an_attempt_left_the_set_stays_sealed(run, monkeypatch, capsys):
    uri, run_id, experiment = run
    for n in range(5):
        entry = {"run_id": run_id, "started_ms": n, "share": 0.01}
        enter_certified(experiment, f"{n:032x}", entry, uri)
    monkeypatch.setattr(certification, "stress", lambda *_, **__: pytest.fail("the sealed set was opened"))
    with pytest.raises(BudgetSpentError, match=r"opened 5 times .* delta = 0\.05"):
        certify(run_id, uri)
    assert len(read_ledgers(experiment, uri).certified) == 5
    assert command_line(["certify", run_id, "--tracking-uri", uri]) == 12
    assert capsys.readouterr().err.count("opened 5 times") == 1


def test_of_two_attempts_that_meet_at_the_last_share_one_is_refused(run, monkeypatch):
    """Both have looked before either was entered: the one that is entered second finds the budget spent."""
    uri, run_id, experiment = run
    for n in range(4):
        enter_certified(experiment, f"{n:032x}", {"run_id": run_id, "started_ms": n, "share": 0.01}, uri)
    enter = certification.enter_certified

    def after_another(*arguments):
        enter_certified(experiment, "9" * 32, {"run_id": run_id, "started_ms": 9, "share": 0.01}, uri)
        enter(*arguments)

    monkeypatch.setattr(certification, "enter_certified", after_another)
    with pytest.raises(BudgetSpentError):
        certify(run_id, uri)


@pytest.mark.parametrize(
    ("tag", "says"),
    [
        (ledger.TAG_MODEL, "the memory of run|fingerprint"),
        (ledger.TAG_HASH_SEALED, "sealed has hash"),
        (ledger.TAG_CONFIG_HASH, "check out its commit"),
    ],
)
def test_what_is_not_what_the_run_logged_is_refused_before_an_attempt_is_spent(run, tag, says):
    uri, run_id, experiment = run
    open_client(uri).set_tag(run_id, tag, "f" * 64)
    with pytest.raises(UserError, match=says):
        certify(run_id, uri)
    assert read_ledgers(experiment, uri).certified == {}


def test_a_memory_that_was_exchanged_is_refused(run):
    uri, run_id, _ = run
    (meta,) = Path(uri.removeprefix("sqlite:///")).parent.glob(f"**/{run_id}/artifacts/{ledger.MEMORY_META}")
    meta.write_text(meta.read_text().replace(read_run(run_id, uri).tags[ledger.TAG_CONFIG_HASH], "0" * 64))
    with pytest.raises(UserError, match="made with another configuration"):
        certify(run_id, uri)


@pytest.mark.parametrize("status", ["RUNNING", "FAILED", "KILLED"])
def test_only_a_finished_run_is_certified(run, status):
    uri, run_id, _ = run
    open_client(uri).set_terminated(run_id, status)
    with pytest.raises(UserError, match=f"is {status}, active"):
        certify(run_id, uri)


# ---------------------------------------------------------------------------------------------------------- reproduction
def test_a_run_repeats_bit_for_bit_and_both_say_so(run, capsys):
    uri, run_id, experiment = run
    assert command_line(["reproduce", run_id, "--tracking-uri", uri]) == 0
    out = capsys.readouterr().out
    assert "reproduced  yes" in out
    assert "every logged number is equal, bit for bit" in out
    first, second = list_runs("again", uri)
    assert first.run_id == run_id
    assert second.tags[ledger.TAG_REPRODUCES] == run_id
    assert {run.tags[ledger.TAG_REPRODUCED] for run in (first, second)} == {"yes"}
    assert ledger.TAG_EXPLORE_DEFAULT not in second.tags  # a repeat spends nothing of the exploration budget
    assert list(read_ledgers(experiment, uri).explored) == [run_id]
    assert command_line(["gate", run_id, "--tracking-uri", uri]) in (10, 11)
    assert f"reproduced  yes (run {second.run_id})" in capsys.readouterr().out


def test_a_number_that_differs_is_named_with_its_distance(run):
    uri, run_id, _ = run
    record = read_run(run_id, uri)
    value = record.metrics[ledger.LOSS_ON]
    open_client(uri).log_metric(run_id, ledger.LOSS_ON, value + 0.5, step=99)
    repeat = reproduce(run_id, uri, progress=False)
    assert repeat.same_gates
    (found,) = repeat.differences
    assert (found.name, found.largest) == (ledger.LOSS_ON, pytest.approx(0.5))


def test_another_gate_result_is_status_10(run, capsys):
    """Without its stress table the first run proves nothing; the repeat does."""
    uri, run_id, _ = run
    (table,) = Path(uri.removeprefix("sqlite:///")).parent.glob(
        f"**/{run_id}/artifacts/{ledger.TABLE_STRESS}"
    )
    table.unlink()
    assert command_line(["reproduce", run_id, "--tracking-uri", uri]) == 10
    out = capsys.readouterr().out
    assert "reproduced  no" in out
    assert "tables/off_stress.jsonl stress_delta: 24 of 24 values differ" in out


def test_what_did_not_finish_is_not_repeated(run):
    uri, run_id, _ = run
    open_client(uri).set_terminated(run_id, "FAILED")
    with pytest.raises(UserError, match="only a finished run can be reproduced"):
        reproduce(run_id, uri)
    assert len(list_runs("again", uri)) == 1


def test_ci_repeats_no_debug_run(small_config, store_uri, monkeypatch):
    config = small_config(f"tracking.uri={store_uri}", *SIZES, "phase3.runtime.policy_mode=debug")
    run_id = run_training(config, phase=3, progress=False)
    monkeypatch.setenv("CI", "true")
    with pytest.raises(UserError, match="policy_mode debug, and CI is set"):
        reproduce(run_id, store_uri)
    assert len(list_runs("cedkv", store_uri)) == 1


# -------------------------------------------------------------------------------------------------- what judging leaves
def test_a_finished_run_carries_its_verdict_and_judging_again_changes_nothing(run, capsys):
    uri, run_id, _ = run
    before = read_run(run_id, uri)
    assert before.tags[ledger.TAG_REPRODUCED] == Reproduced.NOT_TRIED
    assert before.tags[ledger.TAG_MILESTONE] == "not judged"
    assert before.tags[ledger.TAG_VERDICT].upper() in before.tags[ledger.TAG_DESCRIPTION]
    assert ledger.GATE_A_PASSED in before.metrics
    command_line(["gate", run_id, "--tracking-uri", uri])
    assert repr(read_run(run_id, uri)) == repr(before)  # NaN among the metrics is not equal to itself
    assert not capsys.readouterr().err


def test_a_verdict_does_not_read_what_a_verdict_wrote(run):
    uri, run_id, experiment = run
    client = open_client(uri)
    for tag in (ledger.TAG_VERDICT, ledger.TAG_GATE_A, ledger.TAG_GATE_B, ledger.TAG_REPRODUCED):
        client.set_tag(run_id, tag, "pass")
    client.log_metric(run_id, ledger.GATE_B_PASSED, 1.0, step=9)
    around = publish.surroundings(experiment, uri, remember=False)
    assert publish.verdict_on(read_run(run_id, uri), around).gates.status is not Status.PASS
