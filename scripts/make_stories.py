"""Make build/stories/{documents,on,off}.jsonl for configs/stories.yaml from the real material in ../shared.

Documents are beginnings of TinyStories. ON evaluation asks for the name with which the story goes on; ON training
asks for words of other sentences: of the document itself, and of the rest of the story where the word is a name from
the document. OFF prompts are pieces of stories that are no document, and of encyclopedia, arithmetic, programming and
chat texts. The output holds texts of others under their own licences: keep it out of the repository.
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

from cedkv.core.errors import UserError
from cedkv.data.records import Document, OffPrompt, OnPrompt, normalised
from cedkv.data.stress import content_key, distinct
from cedkv.data.tokens import FastTokenizer, encode_on, encode_prompt

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

CONTEXT = 512  # tokens, of the stories260K model
OFF_TOKENS = range(20, 49)  # shorter ones look like the start of a story, longer ones only cost time
TRAIN_PER_DOCUMENT = range(2, 9)
OFF_PER_STORY = 6
OFF_PER_FAMILY = 1600  # else the encyclopedia would be most of the stress set
SEED = 3407  # of the choice among sentences, nothing else

SENTENCE = re.compile(r"[^.!?]*[.!?]+[\"'”’]?")
WORD = re.compile(r"[A-Za-z]+")


@dataclass(frozen=True, slots=True)
class Stories:
    """What is written: one row per line of the three files."""

    documents: list[Document]
    on: list[OnPrompt]
    off: list[OffPrompt]


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
    from transformers import AutoTokenizer  # takes seconds: only once the files are there

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
def shorten(tokenizer: FastTokenizer, text: str) -> str | None:
    """``text`` cut after a whole word to at most `OFF_TOKENS` tokens; ``None`` where it is too short."""
    words = " ".join(text.split()).split(" ")
    words = words[: max(OFF_TOKENS)]  # a word has at least one token
    while words and len(encode_prompt(tokenizer, " ".join(words), name="OFF prompt")) - 1 > max(OFF_TOKENS):
        words.pop()
    short = " ".join(words)
    if not short or len(encode_prompt(tokenizer, short, name="OFF prompt")) - 1 < min(OFF_TOKENS):
        return None
    return short


def story_pieces(stories: dict[int, str], skip: set[int]) -> Iterator[tuple[str, str]]:
    """Pairs of sentences from within the stories that are no document, never from their start."""
    for number, story in stories.items():
        if number not in skip:
            parts = sentences(story)
            for place in range(1, min(len(parts) - 1, 2 * OFF_PER_STORY), 2):
                yield f"tinystories-{number}-{place}", " ".join(parts[place : place + 2])


def encyclopedia_pieces(text: str) -> Iterator[tuple[str, str]]:
    """Sentences of WikiText-2 without unknown words, its spaced-out punctuation closed up."""
    for number, line in enumerate(text.splitlines()):
        for place, sentence in enumerate(line.strip().split(" . ")):
            if sentence and "<unk>" not in sentence and "=" not in sentence:
                closed = re.sub(r" @(.)@ ", r"\1", sentence)
                yield f"wikitext2-{number}-{place}", re.sub(r" ([,;:.?!)])", r"\1", closed).replace("( ", "(")


def off_sources(data: Path, stories: dict[int, str], skip: set[int]) -> dict[str, list[tuple[str, str]]]:
    """(id, text) pairs of every OFF family, by the family's name."""
    svamp = json.loads(read_text(data / "off" / "svamp.json"))
    mbpp = read_json_lines(data / "off" / "mbpp.jsonl")
    chat = read_json_lines(data / "off" / "mt_bench_question.jsonl")
    return {
        "tinystories": list(story_pieces(stories, skip)),
        "wikitext2": list(encyclopedia_pieces(read_text(data / "off" / "wikitext2_valid.txt"))),
        "svamp": [
            (f"svamp-{i}", f"{row['Body'].rstrip('.')}. {row['Question']}") for i, row in enumerate(svamp)
        ],
        "mbpp": [(f"mbpp-{row['task_id']}", row["text"]) for row in mbpp],
        "mt_bench": [
            (f"mt_bench-{row['question_id']}-{turn}", text)
            for row in chat
            for turn, text in enumerate(row["turns"])
        ],
    }


def off_prompts(
    tokenizer: FastTokenizer, family: str, texts: list[tuple[str, str]], barred: set[str]
) -> list[OffPrompt]:
    """Distinct prompts of one family, without ``barred`` contents, in a seeded order."""
    short = ((name, shorten(tokenizer, text)) for name, text in texts)
    prompts = distinct(OffPrompt(name, text, family) for name, text in short if text)
    kept = [prompt for prompt in prompts if normalised(prompt.prompt) not in barred]
    return sorted(kept, key=lambda p: content_key(SEED, p.prompt))[:OFF_PER_FAMILY]


# ------------------------------------------------------------------------------------------------------- the whole
def make(shared: Path) -> Stories:
    """Read ``shared`` and make all rows."""
    data = shared / "data"
    items = read_json_lines(data / "tinystories" / "name_cloze.jsonl")
    stories = {row["id"]: row["text"] for row in read_json_lines(data / "tinystories" / "stories.jsonl")}
    tokenizer = load_tokenizer(shared / "models" / "stories260K")
    on = {item["id"]: on_prompts(tokenizer, item, stories[item["id"]]) for item in items}
    documents = [Document(f"story-{item['id']}", item["document"]) for item in items if on[item["id"]]]
    barred = {normalised(row.prompt) for rows in on.values() for row in rows}
    sources = off_sources(data, stories, {item["id"] for item in items})
    off = [row for family, texts in sources.items() for row in off_prompts(tokenizer, family, texts, barred)]
    return Stories(documents, [row for rows in on.values() for row in rows], distinct(off))


def write(stories: Stories, folder: Path) -> None:
    """Write the three files into ``folder``; each appears whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, list[Any]] = {"documents": stories.documents, "on": stories.on, "off": stories.off}
    for name, rows in files.items():
        part = folder / f"{name}.jsonl.part"
        part.write_text(
            "".join(json.dumps(row.row(), ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
        )
        part.replace(folder / f"{name}.jsonl")


def summary(stories: Stories) -> str:
    """What was made, in counts."""
    splits = Counter(row.split for row in stories.on)
    families = Counter(row.family for row in stories.off)
    return "\n".join(
        [
            f"documents {len(stories.documents)}",
            f"on        {len(stories.on)} ({splits['train']} train, {splits['eval']} eval)",
            f"off       {len(stories.off)} ({', '.join(f'{n} {family}' for family, n in families.most_common())})",
        ]
    )


def main() -> int:
    """Parse the command line, make the files, say what they hold."""
    parser = argparse.ArgumentParser(description="Make the data of configs/stories.yaml.")
    parser.add_argument(
        "--shared", type=Path, default=Path("../shared"), help="folder with data/ and models/"
    )
    parser.add_argument("--out", type=Path, default=Path("build/stories"), help="folder to write to")
    options = parser.parse_args()
    try:
        stories = make(options.shared)
    except UserError as error:
        sys.stderr.write(f"make_stories: error: {error}\n")
        return 2
    write(stories, options.out)
    sys.stdout.write(f"{options.out}\n{summary(stories)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
