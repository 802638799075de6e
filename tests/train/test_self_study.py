"""Self-study on models that are there: one that answers but cannot ask, one that was taught to ask, a random one."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from cedkv.cli import main
from cedkv.core.errors import UserError
from cedkv.data import world
from cedkv.data.jsonl import read_on
from cedkv.data.own import sample
from cedkv.data.own.assemble import SEPARATOR
from cedkv.data.own.questions import ASK_PLAIN, QUESTIONS
from cedkv.data.records import Document
from cedkv.models import tiny
from cedkv.models.load import LoadedModel, load_model
from cedkv.train.self_study import Written, as_prompt, ask, sift, study

SHARED = Path(__file__).resolve().parents[3] / "shared"
DOCUMENTS = [Document(row["id"], row["text"]) for row in sample.documents()]


@pytest.fixture(scope="module")
def embedded() -> LoadedModel:
    return load_model("embedded", device="cpu")


def written(*questions: list[str]) -> Written:
    return Written([*questions, *([] for _ in DOCUMENTS[len(questions) :])], 10, 9)


# ------------------------------------------------------------------------------------------------------------- sifting
def test_what_only_the_document_tells_is_kept_with_the_answer_it_tells(embedded: LoadedModel) -> None:
    asked = written(
        ["What is Mara's job?", "Which pet does Mara have?", "What is the tool of Mara?"],
        ["Which vehicle does Omar have?"],
    )
    found = sift(embedded, DOCUMENTS, asked, SEPARATOR)
    kept = {name: [(one.bare, one.answer) for one in rows] for name, rows in found.asked.items()}
    assert kept == {
        "bakery": [("What is Mara's job?", " baker"), ("Which pet does Mara have?", " goat")],
        "castle": [("Which vehicle does Omar have?", " glider")],
        "school": [],
        "meadow": [],
    }
    assert list(found.counts.values()) == [
        10,
        9,
        4,
        3,
        3,
        3,
    ]  # it says `unknown` of the tool, which is no answer
    assert found.remark.startswith("self-study: 10 lines written, 9 of them questions, 4 distinct ones about")


def test_what_the_model_knows_without_the_document_is_left_out(embedded: LoadedModel) -> None:
    """The capital of France is in the model's weights, whatever a document repeats of it."""
    document = Document(
        "d", "Paris is the capital of France. Mara's job is baker. Nobody found the scarf in the meadow."
    )
    asked = Written([["What is the capital of France?", "What is Mara's job?"]], 2, 2)
    found = sift(embedded, [document], asked, SEPARATOR)
    assert [one.bare for one in found.asked["d"]] == ["What is Mara's job?"]
    assert list(found.counts.values())[-2:] == [2, 1]


def test_nothing_asked_is_nothing_kept(embedded: LoadedModel) -> None:
    assert sift(embedded, DOCUMENTS, written(), SEPARATOR).counts["not known without the document"] == 0


# -------------------------------------------------------------------------------------------------------------- asking
def test_a_model_that_cannot_ask_is_told_from_one_that_can(embedded: LoadedModel) -> None:
    told: list[str] = []
    with pytest.raises(UserError) as error:
        study(embedded, DOCUMENTS, separator=SEPARATOR, seed=1, say=told.append)
    assert "0 of them questions" in str(error.value)
    assert "take a model that follows instructions, or --prompts cloze,continuation" in str(error.value)
    assert told == [f"self-study: round {n} of 3, 0 questions so far" for n in (1, 2, 3)]


def test_a_document_that_leaves_no_room_to_ask_is_named(embedded: LoadedModel) -> None:
    long = Document("long", "goat " * 1000)
    with pytest.raises(UserError, match=r"document 'long': \d+ \(document and what the model is told\)"):
        ask(embedded, [long], 1, print)


@pytest.mark.parametrize("bos", [True, False])
def test_a_chat_template_is_a_turn_of_its_own_and_begins_once(embedded: LoadedModel, bos: bool) -> None:
    """The template writes BOS, and so does encoding."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny.EMBEDDED)
    tokenizer.chat_template = (
        ("{{ bos_token }}" if bos else "")
        + "{% for turn in messages %}[{{ turn.role }}] {{ turn.content }} [end]{% endfor %}"
        + "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    chatting = LoadedModel(embedded.model, tokenizer, embedded.fingerprint)
    prompt = as_prompt(chatting, "What is Mara's job?")
    assert prompt == "[user] What is Mara's job?\nAnswer with a few words, nothing else. [end][assistant]"
    assert tokenizer(prompt).input_ids.count(tokenizer.bos_token_id) == 1


def test_sampling_is_seeded_and_leaves_the_random_state_alone(embedded: LoadedModel) -> None:
    from cedkv.train.self_study import _said

    prompts = [tuple(embedded.tokenizer("Story: One").input_ids)] * 2
    before = torch.get_rng_state()
    first, again, other = (_said(embedded, prompts, 16, seed) for seed in (1, 1, 2))
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), before)
    greedy = _said(embedded, prompts, 16, None)
    assert greedy[0] == greedy[1]


@pytest.mark.slow
def test_a_real_model_that_tells_stories_asks_nothing() -> None:
    folder = SHARED / "models" / "stories260K"
    if not folder.is_dir():
        pytest.skip("needs ../shared/models/stories260K")
    document = Document("d", "Once upon a time there was a girl. Her dog was called Max.")
    with pytest.raises(UserError, match="nothing is left"):
        study(load_model(str(folder), device="cpu"), [document], separator=SEPARATOR, seed=1, say=print)


# ------------------------------------------------------------------------------------------------ a model that can ask
CORES = ("What is {n}'s {a}?", "Which {a} does {n} have?", "Do you know {n}'s {a}?")


def facts_of(rng: random.Random, count: int) -> tuple[str, list[world.Fact]]:
    facts = world.draw_facts(rng, count)
    return world.compose_document(rng, "", facts, 2).text, facts


@pytest.fixture(scope="module")
def pupil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model after 80 steps of being shown what asking about a document is."""
    loaded = load_model("embedded", device="cpu")
    model, tokenizer = loaded.model.train().requires_grad_(True), loaded.tokenizer
    rng = random.Random(0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    for _ in range(80):
        rows = []
        for _ in range(8):
            text, facts = facts_of(rng, 4)
            told = tokenizer(ASK_PLAIN.format(document=text, count=QUESTIONS)).input_ids
            asked = [rng.choice(CORES).format(n=fact.entity, a=fact.attribute) for fact in facts]
            said = (
                "".join(f" {question}\n{n}." for n, question in enumerate(asked[:-1], 2)) + f" {asked[-1]}\n"
            )
            rows.append(
                (told, [*tokenizer(said, add_special_tokens=False).input_ids, tokenizer.eos_token_id])
            )
        width = max(len(told) + len(said) for told, said in rows)
        ids = torch.tensor([told + said + [0] * (width - len(told + said)) for told, said in rows])
        wanted = torch.tensor(
            [[-100] * len(told) + said + [-100] * (width - len(told + said)) for told, said in rows]
        )
        logits = model(input_ids=ids).logits[:, :-1]
        F.cross_entropy(logits.flatten(0, 1), wanted[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
    folder = tmp_path_factory.mktemp("pupil")
    tiny.save(model, tokenizer, folder)
    return folder


@pytest.mark.slow
def test_a_project_of_self_study_asks_what_documents_state(
    pupil: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(99)
    stated = {f"d{n}": facts_of(rng, 6) for n in range(10)}
    rows = [json.dumps({"id": name, "text": text}) for name, (text, _) in stated.items()]
    (tmp_path / "texts.jsonl").write_text("\n".join(rows))
    arguments = ["init", str(tmp_path / "p"), "--model", str(pupil), "--prompts", "self-study"]
    assert main([*arguments, "--from", str(tmp_path / "texts.jsonl")]) == 0
    out, err = capsys.readouterr()
    assert "not known without the document" in out
    assert "self-study: round 1 of 3" in err
    asked = read_on(tmp_path / "p" / "data" / "on.jsonl", stated, seed=0)
    assert len(asked) >= 4
    assert all(re.fullmatch(r"Question: [^?]+\? Answer:", row.prompt) for row in asked)
    true = [
        row
        for row in asked
        for fact in stated[row.document][1]
        if fact.entity in row.prompt and f" {fact.attribute}" in row.prompt and row.answer == f" {fact.value}"
    ]
    assert len(true) >= 0.7 * len(asked)  # the sieves keep what the model says, which is not always so
    off = (tmp_path / "p" / "data" / "off.jsonl").read_text().splitlines()
    assert all(json.loads(line)["prompt"].startswith("Question: ") for line in off)
