"""`cedkv memory`, `generate` and `doctor`: what they print, and their status."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cedkv.api import train
from cedkv.api.folder import export
from cedkv.cli import main


@pytest.fixture(scope="module")
def run(tmp_path_factory, store_template, small_config):
    """(store, run, folder of its memory) of a small Phase 2 run."""
    home = tmp_path_factory.mktemp("use")
    shutil.copyfile(store_template, home / "mlflow.db")
    uri = f"sqlite:///{home / 'mlflow.db'}"
    run_id = train(small_config(f"tracking.uri={uri}", phase=2), phase=2)
    export(run_id, uri, home / "memory", force=True)
    return uri, run_id, home / "memory"


def said(capsys, *arguments: str, status: int = 0) -> str:
    assert main(list(arguments)) == status
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    return shown.out + shown.err


def test_a_run_that_fails_is_exported_by_force_only(run, tmp_path, capsys):
    uri, run_id, _ = run
    out = tmp_path / "memory"
    told = said(capsys, "memory", "export", run_id, "--tracking-uri", uri, "--out", str(out), status=10)
    assert "nothing is exported" in told
    assert not out.exists()
    told = said(capsys, "memory", "export", "--latest", "--tracking-uri", uri, "--out", str(out), "--force")
    assert "Gate A fail" in told
    assert said(capsys, "memory", "diff", str(out), str(run[2])) == "the two inject the same\n"
    told = said(
        capsys, "memory", "export", run_id, "--tracking-uri", uri, "--out", str(out), "--force", status=2
    )
    assert "not empty" in told


def test_inspecting_shows_facts_and_slots(run, capsys):
    _, run_id, folder = run
    shown = said(capsys, "memory", "inspect", str(folder))
    assert run_id in shown
    assert "verdict gate_a" in shown
    content = json.loads(said(capsys, "memory", "inspect", str(folder), "--format", "json"))
    name = content["names"][0]
    assert content["documents"] == len(content["names"]) == 3
    table = said(capsys, "memory", "inspect", str(folder), "--state", name).splitlines()
    assert sum(":" in line for line in table[-3:]) == 3  # one line a slot, each with its candidates
    assert "no document of this memory" in said(
        capsys, "memory", "inspect", str(folder), "--state", "x", status=2
    )


def test_verifying_finds_what_was_changed(run, small_model, tmp_path, capsys):
    uri, run_id, folder = run
    shown = said(
        capsys, "memory", "verify", str(folder), "--model", str(small_model), "--log", "--tracking-uri", uri
    )
    assert "weights, settings and tokenizer agree" in shown
    assert f"run {run_id[:8]} logged it" in shown
    spoiled = Path(shutil.copytree(folder, tmp_path / "spoiled"))
    content = (spoiled / "memory.safetensors").read_bytes()
    (spoiled / "memory.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "another hash" in said(capsys, "memory", "verify", str(spoiled), status=2)
    assert "another model" in said(capsys, "memory", "verify", str(folder), "--model", "embedded", status=2)


def test_three_ways_to_answer_stand_side_by_side(run, capsys):
    """Of a run the document is known; its teacher's context is put together as in training."""
    uri, run_id, _ = run
    rows = json.loads(
        said(
            *(capsys, "generate", run_id, "What is", "--state", "doc-0001", "--tracking-uri", uri),
            *("--tokens", "5", "--format", "json"),
        )
    )
    assert [row["way"] for row in rows] == ["bare model", "memory", "full context"]
    for row in rows[1:]:
        assert len(row["kl"]) == len(row["tokens"]) <= 5
        assert "".join(row["tokens"]) == row["text"]
        assert max(row["kl"]) > 1e-4
    drawn = [
        "generate",
        run_id,
        "What is",
        "--state",
        "doc-0001",
        "--tracking-uri",
        uri,
        "--temperature",
        "1",
    ]
    first, again = (said(capsys, *drawn, "--seed", "3") for _ in range(2))
    assert first == again
    assert first != said(capsys, *drawn, "--seed", "4")


def test_a_folder_needs_a_state_and_takes_a_document(run, tmp_path, capsys):
    folder = str(run[2])
    assert "name one with --state" in said(capsys, "generate", folder, "What is", status=2)
    told = said(capsys, "generate", folder, "What is", "--state", "doc-0000", "--document", "/none", status=2)
    assert "cannot be read as UTF-8 text" in told
    (tmp_path / "d.txt").write_text("Alma has soup.")
    shown = said(
        capsys, "generate", folder, "What is", "--state", "doc-0000", "--document", str(tmp_path / "d.txt")
    )
    assert [line.split("  ")[0] for line in shown.splitlines() if line[:1].isalpha()][:3] == [
        "bare model",
        "memory",
        "full context",
    ]
    assert "more than the model's context" in said(
        capsys, "generate", folder, "What is", "--state", "doc-0000", "--tokens", "999", status=2
    )


def test_the_doctor_tries_what_memories_rely_on(small_model, capsys):
    content = json.loads(said(capsys, "doctor", str(small_model), "--format", "json"))
    assert content["supported"] is True
    assert len(content["findings"]) == 5
    assert (
        content["costs"]["bytes of a slot"] == 2 * 2 * 8 * 4
    )  # key and value, 2 heads of 8, float32, one layer
    assert "is not a layer scope" in said(capsys, "doctor", str(small_model), "--layers", "top0", status=2)
    assert "cannot be loaded" in said(capsys, "doctor", "/none", status=2)
