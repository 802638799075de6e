"""Every key of the configuration does something: it is read by a run, or by the verdict on it, or it has one value."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal, get_args, get_origin

import pytest

from cedkv.config import Config, load
from cedkv.config.base import Section
from cedkv.config.reference import keys
from cedkv.data.build import build_corpus
from cedkv.release.verdict import Surroundings, verdict_on
from cedkv.tracking.reader import read_run
from cedkv.train.certification import certify
from cedkv.train.main import run_training

AT_LOAD = {
    # What stands here decides which configurations are refused; that is tested with the rules of the configuration.
    "phase3.runtime.debug_allow_nonfixed_constraint_sources",
}


class Read(dict[str, Any]):
    """A mapping that notes the dotted path of everything that is taken from it."""

    def __init__(self, content: dict[str, Any], noted: set[str], path: str = "") -> None:
        super().__init__(content)
        self.noted, self.path = noted, path

    def __getitem__(self, key: str) -> Any:
        path = f"{self.path}.{key}" if self.path else key
        self.noted.add(path)
        found = super().__getitem__(key)
        return Read(found, self.noted, path) if isinstance(found, dict) else found


def leaves(section: Section, path: str = "") -> Iterator[tuple[str, type[Section], str]]:
    """(dotted path, class, field) of every key."""
    for name in type(section).model_fields:
        value, here = getattr(section, name), f"{path}.{name}" if path else name
        if isinstance(value, Section):
            yield from leaves(value, here)
        else:
            yield here, type(section), name


def one_value(owner: type[Section], name: str) -> bool:
    annotation = owner.model_fields[name].annotation
    return get_origin(annotation) is Literal and len(get_args(annotation)) == 1


@pytest.fixture
def reads(monkeypatch):
    """Notes every (class, field) of a configuration that is read from now on."""
    noted: set[tuple[type, str]] = set()

    def note(section: Section, name: str) -> Any:
        if name in type(section).model_fields:
            noted.add((type(section), name))
        return object.__getattribute__(section, name)

    monkeypatch.setattr(Section, "__getattribute__", note, raising=False)
    return noted


GATED = "phase3.mix.slot_gate=affine"


def jsonl_config(folder) -> Config:
    rows = {
        "documents": [{"id": "d", "text": "Mara keeps bees."}],
        "on": [{"document": "d", "prompt": f"Mara keeps{dots}", "answer": " bees"} for dots in ("", "..")],
        "off": [{"prompt": f"{n} and {n} make"} for n in range(4)],
    }
    for name, content in rows.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, content)))
    files = ", ".join(f"{name}: {name}.jsonl" for name in rows)
    (folder / "own.yaml").write_text(
        f"data: {{source: jsonl, {files}}}\n"
        "phase3: {loss: {off: {hard_pool_size: 2}}, train: {off_batch: 2}, "
        "eval: {on_samples: 1, off_samples: 2, off_fixed_stress: {size: 2}}}\n"
    )
    return load(folder / "own.yaml", env={}).config


def test_no_key_is_dead(small_config, store_uri, tmp_path, reads):
    warned = (
        "phase3.thresholds.off_delta_p99_max=1e-6",
        "phase3.train.constraint_warn.patience_eval_ticks=1",
    )
    config = small_config(
        f"tracking.uri={store_uri}", "phase3.train.steps=2", GATED, "phase3.loss.source=blend", *warned
    )
    own = jsonl_config(tmp_path)
    everything = {*leaves(config), *leaves(own)}
    reads.clear()
    run_id = run_training(config, phase=3, explore=True, progress=False)
    build_corpus(own)
    by_run = {path for path, owner, name in everything if (owner, name) in reads}
    reads.clear()  # a certification loads the configuration again, which reads every key that a rule looks at
    certify(run_id, store_uri)
    by_run |= {
        path
        for path, owner, name in everything
        if path.startswith("phase3.certification.") and (owner, name) in reads
    }
    by_verdict: set[str] = set()
    record = read_run(run_id, store_uri)
    noted = replace(record, config=Read(dict(record.config), by_verdict))
    repeat = replace(record, run_id="repeat")
    verdict_on(noted, Surroundings("cedkv", [noted, repeat], {}, (), {"repeat": repeat}.__getitem__))
    fixed = {path for path, owner, name in everything if one_value(owner, name)}
    assert {path for path, _, _ in everything} == {key.path for key in keys()}
    unread = {path for path, _, _ in everything} - by_run - by_verdict - fixed
    assert unread == AT_LOAD
    assert "phase3.thresholds.on_gain_min" in by_verdict
    assert {"phase3.train.lr", "data.free_sentences", "data.documents", "base_dir"} <= by_run
