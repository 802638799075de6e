"""The judge gives what a run logs, and what independent passes over plain text give."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cedkv.bench.quality import plain
from cedkv.bench.quality.judge import bytes_of, judge_passes, judge_states
from cedkv.bench.quality.options import Options
from cedkv.bench.quality.ours import from_run
from cedkv.bench.quality.result import Result
from cedkv.bench.quality.setting import Setting, gated
from cedkv.core.losses import kl_divergence
from cedkv.injection import inject
from cedkv.injection.trunk import whole_pass


def test_phase_2_judged_again_is_what_its_run_logged(
    setting: Setting, small_options: Callable[..., Options], store_uri: str
) -> None:
    logging = Setting(small_options(store_uri), 5, lambda _: None)
    made = from_run(logging, 2)
    tables = judge_states(setting.experiment, setting.anchors)
    assert tables.on == made.on
    assert tables.stress == made.stress
    assert made.bytes == bytes_of(setting.anchors)
    assert not made.facts["reused"]
    # What is in the log is taken from there, and not where it is not wanted.
    again = from_run(logging, 2)
    if made.facts["commit"] != "unknown":
        assert again.facts == {**made.facts, "reused": True}
        assert (again.on, again.stress) == (made.on, made.stress)
    other = Setting(small_options("sqlite:///nowhere/x.db", read_from=(store_uri,)), 6, lambda _: None)
    from cedkv.bench.quality.ours import find

    assert find(other, 2) == (None, "")


class Injected:
    """States by whole passes."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def logits(self, ids: Tensor, rows: Tensor, keep: int) -> Tensor:
        with inject(self.setting.experiment.model, self.setting.anchors, rows):
            return whole_pass(self.setting.experiment.model, ids, keep)


@pytest.mark.parametrize("alone", [True, False])
def test_whole_passes_give_what_the_trunk_gives(setting: Setting, alone: bool) -> None:
    experiment = setting.experiment
    found = judge_passes(experiment, Injected(setting), alone=alone)
    expected = judge_states(experiment, setting.anchors)
    for mine, theirs in zip(found.stress, expected.stress, strict=True):
        assert mine.stress_delta == pytest.approx(theirs.stress_delta, rel=1e-3, abs=1e-6)
        assert (mine.id, mine.base_top) == (theirs.id, theirs.base_top)
    for row, wanted in zip(found.on, expected.on, strict=True):
        assert row.student_logp == pytest.approx(wanted.student_logp, abs=1e-4)
        assert row.student_correct == wanted.student_correct


def test_the_base_gains_nothing_and_drifts_nowhere(setting: Setting) -> None:
    tables = plain.judge_bare(setting.experiment)
    metrics = Result("base", 5, tables.on, tables.stress).metrics
    assert metrics["on_gain"] == metrics["delta_on_mean"] == metrics["off_delta_max_stress"] == 0
    assert metrics["rel_kl_to_teacher"] == 1
    tops = [row.base_top for row in judge_states(setting.experiment, setting.anchors).stress]
    assert [row.base_top for row in tables.stress] == tops


def test_full_context_is_the_document_read_before_the_prompt(setting: Setting) -> None:
    experiment = setting.experiment
    tables = plain.judge_full(experiment, plain.FullContext(experiment))
    assert all(row.student_logp == row.teacher_logp for row in tables.on)
    row = tables.stress[3]
    prompt, model = experiment.encoded.stress[3].prompt, experiment.model
    base = whole_pass(model, torch.tensor([prompt]), 1).log_softmax(-1)
    kls = []
    for context in experiment.encoded.contexts:
        ids = context.ids + prompt[experiment.encoded.skipped :]
        said = whole_pass(model, torch.tensor([ids]), 1).log_softmax(-1)
        kls.append(kl_divergence(said, base).item())
    assert row.stress_delta == pytest.approx(max(kls), rel=1e-3)
    assert row.state == experiment.encoded.contexts[kls.index(max(kls))].id


def test_random_slots_are_the_documents_own_tokens(setting: Setting) -> None:
    states = plain.random_slots(setting.experiment, 1)
    atoms = plain.captured(setting.experiment)[0]
    layer = states.layers[0]
    distances = torch.cdist(states.keys[layer][0, 0], atoms.keys[layer][0])
    assert distances.amin(1).max() == 0
    assert len(set(distances.argmin(1).tolist())) == setting.slots
    assert states.layers == setting.anchors.layers


def test_bytes_are_counted_entry_by_entry(setting: Setting) -> None:
    heads, size, slots, layers = 2, 8, 3, 2
    assert bytes_of(setting.anchors) == layers * slots * heads * 2 * size * 4
    assert bytes_of(gated(setting.anchors, 4)) == bytes_of(setting.anchors) + layers * slots * 4 * 4
