"""The fixed stress eval: which prompts, drawn how and when, and what is measured on them."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch

from cedkv import ledger
from cedkv.config import load
from cedkv.core.hashing import content_hash
from cedkv.data import lexicon
from cedkv.data.build import build_corpus
from cedkv.data.records import Corpus, normalised
from cedkv.injection import inject
from cedkv.release.measure import stress_metrics
from cedkv.tracking.reader import metric_history, read_run
from cedkv.train import experiment as preparation
from cedkv.train import main
from cedkv.train.main import run_training

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="module")
def base() -> Corpus:
    return build_corpus(load(CONFIGS / "base.yaml", env={}).config)


# ----------------------------------------------------------------------------------------------------- specification
def test_the_defaults_are_2048_prompts_of_seed_3407_sampled_once():
    fixed = load(CONFIGS / "base.yaml", env={}).config.phase3.eval.off_fixed_stress
    assert fixed.model_dump() == {
        "size": 2048,
        "seed": 3407,
        "sampling": "once_per_experiment",
        "definition": "phase2_stress_compatible",
    }


@pytest.mark.parametrize(("file", "size"), [("base", 2048), ("mid", 512), ("smoke", 128)])
def test_the_set_has_the_configured_number_of_distinct_prompts(file, size):
    stress = build_corpus(load(CONFIGS / f"{file}.yaml", env={}).config).stress
    assert (
        len(stress)
        == len({normalised(row.prompt) for row in stress})
        == len({row.id for row in stress})
        == size
    )


def test_it_shares_no_prompt_with_what_is_trained_on_or_sealed(base):
    stress = {normalised(row.prompt) for row in base.stress}
    for rows in (base.on_train, base.on_eval, base.off_train, base.sealed):
        assert stress.isdisjoint(normalised(row.prompt) for row in rows)


def test_a_quarter_are_near_misses_of_the_documents_in_the_bank_and_no_document_answers_them(base):
    """A near miss names an entity or asks for an attribute that some document states, but not the two together."""
    statements = [
        {document.text[span.start : span.stop] for span in document.spans[first : first + 3]}
        for document in base.documents
        for first in range(0, len(document.spans), 3)
    ]
    assert len(statements) == 64 * 8
    near = [row.prompt for row in base.stress if row.family == "near_miss"]
    assert len(near) >= 2048 / 4
    for prompt in near:
        words = set(re.findall(r"\w+", prompt))
        (entity,), (attribute,) = words & set(lexicon.NAMES), words & set(lexicon.ATTRIBUTES)
        assert any(entity in said or attribute in said for said in statements)
        assert not any({entity, attribute} <= said for said in statements)


def test_the_other_prompts_ask_nothing_that_any_document_states(base):
    stated = {document.text[span.start : span.stop] for document in base.documents for span in document.spans}
    attributes = stated & set(lexicon.ATTRIBUTES)
    others = [row.prompt for row in base.stress if row.family != "near_miss"]
    assert len(others) > 1000
    assert not any(attributes & set(re.findall(r"\w+", prompt)) for prompt in others)


# ---------------------------------------------------------------------------------------------------------- sampling
@pytest.fixture(scope="module")
def logged(small_config, store_template, tmp_path_factory):
    """Phase 2 once and Phase 3 twice on one store, with every draw of a corpus and every measurement counted."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('spec') / 'mlflow.db'}"
    Path(uri.removeprefix("sqlite:///")).write_bytes(store_template.read_bytes())
    drawn, measured = [], []
    build, stress_rows = preparation.build_corpus, main.stress_rows
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparation, "build_corpus", lambda config: drawn.append(build(config)) or drawn[-1])
        patch.setattr(main, "stress_rows", lambda *a: measured.append(a) or stress_rows(*a))
        runs = [
            run_training(small_config(f"tracking.uri={uri}", phase=phase), phase=phase, progress=False)
            for phase in (2, 3, 3)
        ]
    return uri, runs, drawn, measured


def artifact(uri: str, run_id: str, path: str) -> str:
    folder = Path(uri.removeprefix("sqlite:///")).parent
    (found,) = folder.glob(f"**/{run_id}/artifacts/{path}")
    return found.read_text()


def test_it_is_sampled_once_in_a_run(logged):
    _, runs, drawn, _ = logged
    assert len(drawn) == len(runs)


def test_every_run_of_a_configuration_in_either_phase_has_the_same_set(logged):
    uri, runs, _, _ = logged
    sets = {artifact(uri, run_id, ledger.STRESS_SET) for run_id in runs}
    hashes = {read_run(run_id, uri).tags[ledger.TAG_HASH_STRESS] for run_id in runs}
    assert len(sets) == len(hashes) == 1
    rows = [json.loads(line) for line in sets.pop().splitlines()]
    assert content_hash(rows) == hashes.pop()


def test_the_logged_set_is_the_one_that_was_measured(logged):
    uri, runs, _, measured = logged
    for run_id, (experiment, result) in zip(runs, measured, strict=True):
        logged_set = [json.loads(line) for line in artifact(uri, run_id, ledger.STRESS_SET).splitlines()]
        record = read_run(run_id, uri)
        assert record.stress_table is not None
        in_table = [{"id": r.id, "prompt": r.prompt, "family": r.family} for r in record.stress_table]
        assert logged_set == in_table
        encode = experiment.loaded.tokenizer
        assert [tuple(encode(row["prompt"])["input_ids"]) for row in logged_set] == [
            row.prompt for row in experiment.encoded.stress
        ]
        assert [row.stress_delta for row in record.stress_table] == result.delta.tolist()
        assert record.data_spec is not None
        spec = record.data_spec["stress"]
        assert (spec["size"], spec["seed"]) == (24, 3407)
        assert (spec["sampling"], spec["definition"]) == ("once_per_experiment", "phase2_stress_compatible")
        assert spec["sha256"] == record.tags[ledger.TAG_HASH_STRESS]


def test_the_logged_scalars_are_those_of_the_logged_table(logged):
    uri, runs, _, _ = logged
    for run_id in runs:
        record = read_run(run_id, uri)
        for name, value in stress_metrics(record.stress_table).items():
            assert record.metrics[name] == value or (math.isinf(value) and math.isnan(record.metrics[name]))


def test_the_last_measurement_is_of_the_memory_that_is_kept(logged):
    uri, runs, _, _ = logged
    history = metric_history(runs[1], [ledger.P99_STRESS], uri)[ledger.P99_STRESS]
    assert [point.step for point in history] == [0, 5, 10, 12, 12]
    assert history[-1].value == history[-2].value


# -------------------------------------------------------------------------------------------------------- definition
def test_stress_is_the_largest_divergence_over_all_states_prompt_by_prompt(small_experiment, logged):
    """The definition in a plain loop: one prompt, one state, one forward pass."""
    experiment = small_experiment(phase=2)
    model, states = experiment.model, experiment.bank.states(12).detach()
    uri, (phase2, *_), _, _ = logged
    table = read_run(phase2, uri).stress_table
    assert table is not None
    states_seen = set()
    for u, (row, logged_row) in enumerate(zip(experiment.encoded.stress, table, strict=True)):
        ids = torch.tensor([row.prompt])
        with torch.no_grad():
            base = model(input_ids=ids).logits[0, -1].double().log_softmax(-1)
            kls = []
            for n in range(3):
                with inject(model, states.select(torch.tensor([n]))):
                    student = model(input_ids=ids).logits[0, -1].double().log_softmax(-1)
                kls.append(sum((student.exp() * (student - base)).tolist()))
        assert logged_row.stress_delta == pytest.approx(max(kls), rel=1e-3, abs=1e-6)
        assert logged_row.typical == pytest.approx(kls[u % 3], rel=1e-3, abs=1e-6)
        assert logged_row.state == experiment.bank.documents[kls.index(max(kls))]
        assert logged_row.typical_state == experiment.bank.documents[u % 3]
        states_seen.add(logged_row.state)
    assert len(states_seen) > 1


def test_what_the_log_calls_fixed_is_not_open_to_another_source(logged):
    uri, runs, _, _ = logged
    tags = [read_run(run_id, uri).tags for run_id in runs]
    assert {t[ledger.TAG_SOURCE_P99] for t in tags} == {"fixed_stress_eval"}
    assert {t[ledger.TAG_SOURCE_LAMBDA] for t in tags} == {"fixed_stress_eval"}
