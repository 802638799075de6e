"""The recipe of the embedded model: packed rows are what they stand for, and the command that runs it works."""

from __future__ import annotations

import json
import random
from dataclasses import asdict

import pytest
import torch

from cedkv.cli import main
from cedkv.data import skills, world
from cedkv.models import tiny
from cedkv.models.load import load_model
from cedkv.train import embedded
from cedkv.train.embedded import Recipe, RowMaker, learning_rate
from cedkv.train.packing import Row, collate, logits_at


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.build_tokenizer(embedded.vocabulary_texts(0, samples=40))


@pytest.fixture
def one_thread_afterwards_as_before():
    """The recipe pins the threads of its process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def packed(tokenizer):
    """A document with a question about it and a skill in its sight, and a bare question."""
    rng = random.Random(0)
    maker = RowMaker(tokenizer, rng, Recipe())
    facts = world.draw_facts(rng, 4)
    row = Row([maker.bos, *maker.tokens(world.compose_document(rng, "", facts, 2).text)])
    question = skills.Item(world.question(rng, *facts[0].pair), f" {facts[0].value}", "fact")
    row.segments = [
        maker.segment(question, True),
        maker.segment(skills.SKILLS["story"](rng), False),
        maker.segment(skills.SKILLS["sum"](rng), True),
        maker.segment(question, False),
    ]
    short = Row([maker.bos, *maker.tokens("Nothing here.")], [maker.segment(question, True)])
    return [row, short]


def test_every_segment_of_a_packed_row_is_computed_as_if_it_stood_alone(tokenizer, packed):
    torch.manual_seed(0)
    model = tiny.build_model(len(tokenizer)).eval()
    batch = collate(packed, prompt_weight=0.05)
    with torch.no_grad():
        found = logits_at(model, batch)
        expected = []
        for row in packed:
            for piece in row.segments:
                before = row.document if piece.sees_document else []
                alone = model(input_ids=torch.tensor([before + piece.ids])).logits[0]
                expected.append(alone[len(before) : -1])
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-4, atol=1e-4)


def test_answers_weigh_fully_and_prompts_little(packed, tokenizer):
    batch = collate(packed, prompt_weight=0.05)
    full = batch.weight == 1.0
    assert batch.weight[~full].unique().tolist() == pytest.approx([0.05])
    assert (batch.item[~full] == -1).all()
    said = [tokenizer.decode(batch.target[batch.item == n]) for n in range(len(batch.kinds))]
    pieces = [piece for row in packed for piece in row.segments]
    assert said == [tokenizer.decode(piece.ids[piece.loss_from :]) for piece in pieces]
    assert [text.endswith(tiny.EOS) for text in said] == [True, False, True, True, True]
    assert said[1].startswith("Story: One")  # nothing has to follow a story: all of it is learned


def test_with_a_gap_the_document_is_beyond_the_local_layers(packed):
    row = Row(packed[0].document, packed[0].segments[:1], gap=tiny.LOCAL_REACH)
    batch = collate([row], 0.05)
    size = len(row.document)
    near, everywhere = batch.masks["sliding_attention"][0, 0], batch.masks["full_attention"][0, 0]
    assert batch.positions[0, size] == size + tiny.LOCAL_REACH
    assert not near[size:, :size].any()
    assert everywhere[size:, :size].all()


def test_the_learning_rate_warms_up_and_ends_low():
    recipe = Recipe(steps=100, warmup=10)
    rates = [learning_rate(recipe, step) for step in range(100)]
    assert rates.index(max(rates)) in (9, 10)
    assert max(rates) == pytest.approx(recipe.lr, rel=0.05)
    assert rates[-1] < 0.03 * recipe.lr


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights(tokenizer):
    first, second = (
        dict(next(embedded.train(Recipe(steps=1), tokenizer, lambda *_: None))[1].state_dict())
        for _ in range(2)
    )
    fresh = tiny.build_model(len(tokenizer)).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], fresh[name]) for name in first)


def test_model_build_writes_a_model_that_loads_and_prints_its_held_out_scores(
    tmp_path, monkeypatch, capsys, one_thread_afterwards_as_before
):
    texts = embedded.vocabulary_texts
    monkeypatch.setattr(embedded, "vocabulary_texts", lambda seed: texts(seed, samples=40))
    monkeypatch.setattr(embedded, "HELD_OUT_DOCUMENTS", 1)
    folder = tmp_path / "model"
    assert main(["model", "build", "--out", str(folder), "--steps", "2"]) == 0
    out, err = capsys.readouterr()
    assert "held-out phrasings" in out
    assert [line.split()[0] for line in out.splitlines()[1:-1]] == sorted(
        ["bare", "fact", "near_miss", *(skills.SKILLS.keys() - {"story"})]
    )
    assert out.splitlines()[-1] == f"written to {folder}"
    assert err.startswith("step     0/2 ")
    loaded = load_model(str(folder), device="cpu")
    assert loaded.model.config.model_type == "gemma3_text"
    record = json.loads((folder / "recipe.json").read_text())
    assert record["recipe"]["steps"] == 2
    assert record["fingerprint"] == loaded.fingerprint
    assert not list(folder.glob(".*"))
    assert record["curve"][-1]["step"] == 1
    assert set(record["held_out"]) == {
        "held-out phrasings",
        "trained phrasings",
        "24 facts, held-out phrasings",
    }


def test_an_interrupted_build_leaves_the_model_that_was_there(
    tmp_path, monkeypatch, one_thread_afterwards_as_before
):
    texts = embedded.vocabulary_texts
    monkeypatch.setattr(embedded, "vocabulary_texts", lambda seed: texts(seed, samples=40))
    (tmp_path / "config.json").write_text("the old one")

    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embedded.build(tmp_path, Recipe(steps=2), lambda _: None, on_step=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert (tmp_path / "config.json").read_text() == "the old one"


def test_what_ships_is_what_the_recipe_built():
    record = json.loads((tiny.EMBEDDED / "recipe.json").read_text())
    assert record["recipe"] == asdict(Recipe())
    assert record["fingerprint"] == load_model("embedded", device="cpu").fingerprint


def test_model_build_refuses_what_is_no_folder(tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("")
    assert main(["model", "build", "--out", str(file)]) == 2
    assert (
        capsys.readouterr().err
        == f"cedkv: error: --out {str(file)!r} is no folder to write to (File exists); name another\n"
    )


@pytest.mark.parametrize("steps", ["0", "-1", "many", "1.5"])
def test_model_build_refuses_steps_that_are_no_number(steps, capsys):
    with pytest.raises(SystemExit) as left:
        main(["model", "build", "--steps", steps])
    assert left.value.code == 2
    assert f"{steps!r} is not a whole number from 1 up" in capsys.readouterr().err


@pytest.mark.slow
def test_the_model_that_ships_does_what_the_recipe_promises():
    loaded = load_model("embedded", device="cpu")
    with torch.no_grad():
        scores = embedded.held_out_scores(loaded.model, loaded.tokenizer, Recipe(), documents=64)
    found = scores["held-out phrasings"]  # documents as long as those of base.yaml
    assert found["fact"] >= 0.97
    assert found["near_miss"] >= 0.95
    assert {kind: found[kind] for kind in skills.SKILLS if kind != "story" and found[kind] < 0.9} == {}
