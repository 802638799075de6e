"""Make build/stories/{documents,on,off}.jsonl for configs/stories.yaml from the real material in ../shared.

Documents are beginnings of TinyStories. ON evaluation asks for the name with which the story goes on; ON training
asks for words of other sentences: of the document itself, and of the rest of the story, or of how the model itself goes on
with it, where the word is a name from the document. OFF prompts are pieces of stories that are no document, and of
encyclopedia, arithmetic, programming and chat texts; what trains, what judges and what stays sealed comes from different
stories and paragraphs. The output holds texts of others under their own licences: keep it out of the repository.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cedkv.core.errors import UserError
from cedkv.data.records import Document, OffPrompt, OnPrompt, normalised
from cedkv.data.stress import content_key, distinct
from cedkv.data.tokens import FastTokenizer, encode_on, encode_prompt
from cedkv.evaluate import answer_log_probs, score_answers

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cedkv.models.types import CausalLM

CONTEXT = 512  # tokens, of the stories260K model
OFF_TOKENS = range(20, 49)  # shorter ones look like the start of a story, longer ones only cost time
TRAIN_PER_DOCUMENT = range(2, 9)
TOLD_PER_DOCUMENT = 24  # clozes from what the model tells, at most
TELLINGS, TOLD_TOKENS, ROWS = 64, 48, 32
DOCUMENTS = 64  # the other stories give OFF prompts
OFF_SHARES = {"stress": 0.25, "sealed": 0.25, "train": 0.5}  # of the sources: stories, paragraphs, problems
OFF_CUTS = 4  # training prompts that one piece is cut to: what a prompt is asked depends on where it ends
OFF_JUDGED_PER_FAMILY = 1000  # else stories would be most of the stress set
SEED = 3407  # of the choice among sentences, nothing else

SENTENCE = re.compile(r"[^.!?]*[.!?]+[\"'”’]?")
WORD = re.compile(r"[A-Za-z]+")


@dataclass(frozen=True, slots=True)
class Stories:
    """What is written: one row per line of the three files."""

    documents: list[Document]
    on: list[OnPrompt]
    off: dict[str, list[OffPrompt]]  # by split


# ---------------------------------------------------------------------------------------------- reading ../shared
def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file of ../shared."""
    return [json.loads(line) for line in read_text(path).splitlines() if line.strip()]


def read_text(path: Path) -> str:
    """A text file of ../shared. ``UserError`` where it is absent."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); the stories need the folder 'shared' with data and models "
            "beside the repository: name it with --shared, or use configs/smoke.yaml, which needs no data"
        ) from error


def load_tokenizer(folder: Path) -> FastTokenizer:
    """The tokenizer of the stories260K model."""
    read_text(folder / "tokenizer.json")
    tokenizer: FastTokenizer = AutoTokenizer.from_pretrained(str(folder))
    return tokenizer


# ------------------------------------------------------------------------------------------------------------ ON
def sentences(text: str) -> list[str]:
    """The sentences of a story, each on one line."""
    return [" ".join(match.group().split()) for match in SENTENCE.finditer(text)]


def cloze(sentence: str, wanted: Iterable[str]) -> tuple[str, str] | None:
    """Cut ``sentence`` before the last of the ``wanted`` words that has at least three words in front of it."""
    found = [match for match in WORD.finditer(sentence) if match.group() in wanted]
    for match in reversed(found):
        prompt = sentence[: match.start()]
        if len(prompt.split()) >= 3 and prompt.endswith(" "):
            return prompt.rstrip(), f" {match.group()}"
    return None


def names_in(text: str) -> set[str]:
    """Capitalised words that stand within a sentence: names, mostly."""
    return set(re.findall(r"(?<=[a-z,] )[A-Z][a-z]+", text))


def training_clozes(item: dict[str, Any], story: str) -> Iterator[tuple[str, str]]:
    """(prompt, answer) pairs about the document other than the evaluation item, in a seeded order."""
    document = item["document"]
    names = names_in(document)
    long_words = {word for word in WORD.findall(document) if len(word) > 3} | names
    rest = story[len(document) :]
    pairs = [cloze(sentence, names) for sentence in sentences(rest)]
    pairs += [cloze(sentence, names) or cloze(sentence, long_words) for sentence in sentences(document)]
    evaluation = normalised(item["prompt"])
    fit = {pair for pair in pairs if pair and not normalised(pair[0]).startswith(evaluation)}
    one_each = {normalised(prompt): (prompt, answer) for prompt, answer in sorted(fit)}
    yield from sorted(one_each.values(), key=lambda pair: content_key(SEED, "\n".join(pair)))


@torch.no_grad()
def told_by(model: CausalLM, tokenizer: FastTokenizer, document: str) -> list[str]:
    """Sentences with which the model goes on with a document, which is what it will be asked to do without it."""
    ids = torch.tensor([encode_prompt(tokenizer, document, name="document")])
    torch.manual_seed(SEED)
    length = min(TOLD_TOKENS, CONTEXT - ids.shape[1])
    said = model.generate(
        ids, do_sample=True, temperature=0.9, top_k=0, num_return_sequences=TELLINGS, max_new_tokens=length
    )
    texts = tokenizer.batch_decode(said[:, ids.shape[1] :], skip_special_tokens=True)
    return [sentence for text in texts for sentence in sentences(text)]


def told_prompts(
    model: CausalLM, tokenizer: FastTokenizer, item: dict[str, Any], known: list[OnPrompt]
) -> list[OnPrompt]:
    """More ON training prompts of a document, none of them ``known``: names of it that the model itself goes on with.

    Kept is what the model answers behind the document and not without it, in a seeded order.
    """
    name, document = f"story-{item['id']}", encode_prompt(tokenizer, item["document"], name="document")
    names, evaluation = names_in(item["document"]), normalised(item["prompt"])
    there = {normalised(row.prompt) for row in known}
    pairs = {pair for told in told_by(model, tokenizer, item["document"]) if (pair := cloze(told, names))}
    one_each = {normalised(prompt): (prompt, answer) for prompt, answer in sorted(pairs)}
    rows = [
        OnPrompt(f"{name}-told-{number}", name, prompt, answer, "train")
        for number, (content, (prompt, answer)) in enumerate(sorted(one_each.items()))
        if content not in there and not content.startswith(evaluation)
    ]
    rows = [row for row in rows if on_tokens(tokenizer, row) <= CONTEXT - len(document)]
    ids = [encode_on(tokenizer, row.prompt, row.answer, name=row.id) for row in rows]
    answers = [answer for _, answer in ids]
    behind, bare = (
        score_answers(answer_log_probs(model, prompts, answers, batch_rows=ROWS), answers).correct
        for prompts in ([document + prompt[1:] for prompt, _ in ids], [prompt for prompt, _ in ids])
    )
    taught = [row for row, yes, knows in zip(rows, behind, bare, strict=True) if yes and not knows]
    return sorted(taught, key=lambda row: content_key(SEED, row.id))[:TOLD_PER_DOCUMENT]


def on_prompts(tokenizer: FastTokenizer, item: dict[str, Any], story: str) -> list[OnPrompt]:
    """The ON prompts of one document that fit the model's context behind it; none where too few do."""
    name = f"story-{item['id']}"
    room = CONTEXT - len(encode_prompt(tokenizer, item["document"], name=name))
    rows = [OnPrompt(f"{name}-eval", name, item["prompt"], f" {item['answer']}", "eval")]
    rows += [
        OnPrompt(f"{name}-train-{number}", name, prompt, answer, "train")
        for number, (prompt, answer) in enumerate(training_clozes(item, story))
    ]
    fit = [row for row in rows if on_tokens(tokenizer, row) <= room][: 1 + max(TRAIN_PER_DOCUMENT)]
    complete = fit and fit[0].split == "eval" and len(fit) - 1 in TRAIN_PER_DOCUMENT
    return fit if complete else []


def on_tokens(tokenizer: FastTokenizer, row: OnPrompt) -> int:
    """Tokens of prompt and answer; more than any context where they meet inside a token."""
    try:
        return sum(map(len, encode_on(tokenizer, row.prompt, row.answer, name=row.id)))
    except UserError:
        return CONTEXT + 1


# ----------------------------------------------------------------------------------------------------------- OFF
def shorten(tokenizer: FastTokenizer, text: str, limit: int = max(OFF_TOKENS)) -> str | None:
    """``text`` cut after a whole word to at most ``limit`` tokens; ``None`` where it is shorter than `OFF_TOKENS`."""
    words = " ".join(text.split()).split(" ")
    words = words[:limit]  # a word has at least one token
    offsets = tokenizer(" ".join(words), add_special_tokens=False, return_offsets_mapping=True)[
        "offset_mapping"
    ]
    if len(offsets) > limit:  # near enough to begin with
        words = " ".join(words)[: offsets[limit - 1][1] + 1].split(" ")
    while words and len(encode_prompt(tokenizer, " ".join(words), name="OFF prompt")) - 1 > limit:
        words.pop()
    short = " ".join(words)
    if not short or len(encode_prompt(tokenizer, short, name="OFF prompt")) - 1 < min(OFF_TOKENS):
        return None
    return short


@dataclass(frozen=True, slots=True)
class Piece:
    """Text for OFF prompts. Pieces of one ``source`` go to one split."""

    source: str
    place: str
    text: str


def story_pieces(stories: dict[int, str], skip: set[int]) -> Iterator[Piece]:
    """Pairs of neighbouring sentences from within the stories that are no document, never from their start."""
    for number, story in stories.items():
        if number not in skip:
            parts = sentences(story)
            for place in range(1, len(parts) - 1):
                yield Piece(f"tinystories-{number}", str(place), " ".join(parts[place : place + 2]))


def encyclopedia_pieces(text: str) -> Iterator[Piece]:
    """Sentences of WikiText-2 without unknown words, its spaced-out punctuation closed up."""
    for number, line in enumerate(text.splitlines()):
        for place, sentence in enumerate(line.strip().split(" . ")):
            if sentence and "<unk>" not in sentence and "=" not in sentence:
                closed = re.sub(r" @(.)@ ", r"\1", sentence)
                tidy = re.sub(r" ([,;:.?!)])", r"\1", closed).replace("( ", "(")
                yield Piece(f"wikitext2-{number}", str(place), tidy)


def off_sources(data: Path, stories: dict[int, str], skip: set[int]) -> dict[str, list[Piece]]:
    """The pieces of every OFF family, by the family's name."""
    svamp = json.loads(read_text(data / "off" / "svamp.json"))
    mbpp = read_json_lines(data / "off" / "mbpp.jsonl")
    chat = read_json_lines(data / "off" / "mt_bench_question.jsonl")
    return {
        "tinystories": list(story_pieces(stories, skip)),
        "wikitext2": list(encyclopedia_pieces(read_text(data / "off" / "wikitext2_valid.txt"))),
        "svamp": [
            Piece(f"svamp-{i}", "0", f"{row['Body'].rstrip('.')}. {row['Question']}")
            for i, row in enumerate(svamp)
        ],
        "mbpp": [Piece(f"mbpp-{row['task_id']}", "0", row["text"]) for row in mbpp],
        "mt_bench": [
            Piece(f"mt_bench-{row['question_id']}", str(turn), text)
            for row in chat
            for turn, text in enumerate(row["turns"])
        ],
    }


def split_of(source: str) -> str:
    """The split that all pieces of ``source`` go to."""
    place = int(content_key(SEED, source), 16) / 16**64
    for split, share in OFF_SHARES.items():
        place -= share
        if place < 0:
            return split
    return "train"


def cuts(tokenizer: FastTokenizer, piece: Piece, split: str) -> Iterator[str]:
    """The prompts that a piece is cut to: as long as it may be, and for training shorter ones, too."""
    limits = [max(OFF_TOKENS)]
    if split == "train":
        drawn = (int(content_key(SEED + n, piece.text), 16) for n in range(1, OFF_CUTS))
        limits += [OFF_TOKENS[number % len(OFF_TOKENS)] for number in drawn]
    for limit in limits:
        if short := shorten(tokenizer, piece.text, limit):
            yield short


def off_prompts(
    tokenizer: FastTokenizer, family: str, pieces: list[Piece], barred: set[str]
) -> Iterator[tuple[str, list[OffPrompt]]]:
    """(split, distinct prompts of one family), without ``barred`` contents, in a seeded order."""
    for split in OFF_SHARES:
        prompts = distinct(
            OffPrompt(f"{piece.source}-{piece.place}-{number}", text, family)
            for piece in pieces
            if split_of(piece.source) == split
            for number, text in enumerate(cuts(tokenizer, piece, split))
        )
        kept = [prompt for prompt in prompts if normalised(prompt.prompt) not in barred]
        kept.sort(key=lambda p: content_key(SEED, p.prompt))
        yield split, kept if split == "train" else kept[:OFF_JUDGED_PER_FAMILY]


# ------------------------------------------------------------------------------------------------------- the whole
def make(shared: Path, documents: int = DOCUMENTS) -> Stories:
    """Read ``shared`` and make all rows, about the first ``documents`` stories that have enough to ask about."""
    if documents < 1:
        raise UserError(f"--documents {documents}: a memory is of a document; give 1 or more")
    data = shared / "data"
    items = read_json_lines(data / "tinystories" / "name_cloze.jsonl")
    stories = {row["id"]: row["text"] for row in read_json_lines(data / "tinystories" / "stories.jsonl")}
    folder = shared / "models" / "stories260K"
    tokenizer = load_tokenizer(folder)
    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype="float32").eval()
    on: dict[int, list[OnPrompt]] = {}
    for item in items:
        if len(on) < documents and (rows := on_prompts(tokenizer, item, stories[item["id"]])):
            on[item["id"]] = rows + told_prompts(model, tokenizer, item, rows)
    chosen = [Document(f"story-{item['id']}", item["document"]) for item in items if item["id"] in on]
    barred = {normalised(row.prompt) for rows in on.values() for row in rows}
    off: dict[str, list[OffPrompt]] = {split: [] for split in OFF_SHARES}
    seen: set[str] = set()  # two sources may say the same: a prompt has one split
    for family, pieces in off_sources(data, stories, set(on)).items():
        for split, prompts in off_prompts(tokenizer, family, pieces, barred):
            off[split] += [prompt for prompt in prompts if normalised(prompt.prompt) not in seen]
            seen |= {normalised(prompt.prompt) for prompt in prompts}
    return Stories(chosen, [row for rows in on.values() for row in rows], off)


def write(stories: Stories, folder: Path) -> None:
    """Write the three files into ``folder``; each appears whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, list[dict[str, Any]]] = {
        "documents": [row.row() for row in stories.documents],
        "on": [row.row() for row in stories.on],
        "off": [row.row() | {"split": split} for split, rows in stories.off.items() for row in rows],
    }
    for name, rows in files.items():
        part = folder / f"{name}.jsonl.part"
        part.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        part.replace(folder / f"{name}.jsonl")


def summary(stories: Stories) -> str:
    """What was made, in counts."""
    splits = Counter(row.split for row in stories.on)
    lines = [
        f"documents  {len(stories.documents)}",
        f"on         {len(stories.on)} ({splits['train']} train, {splits['eval']} eval)",
    ]
    for split, rows in stories.off.items():
        families = ", ".join(f"{n} {family}" for family, n in Counter(r.family for r in rows).most_common())
        lines.append(f"off {split:<6} {len(rows)} ({families})")
    return "\n".join(lines)


def main() -> int:
    """Parse the command line, make the files, say what they hold."""
    parser = argparse.ArgumentParser(description="Make the data of configs/stories.yaml.")
    parser.add_argument(
        "--shared", type=Path, default=Path("../shared"), help="folder with data/ and models/"
    )
    parser.add_argument("--documents", type=int, default=DOCUMENTS, help="stories that become documents")
    parser.add_argument("--out", type=Path, default=Path("build/stories"), help="folder to write to")
    options = parser.parse_args()
    try:
        stories = make(options.shared, options.documents)
    except UserError as error:
        sys.stderr.write(f"make_stories: error: {error}\n")
        return 2
    write(stories, options.out)
    sys.stdout.write(f"{options.out}\n{summary(stories)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
