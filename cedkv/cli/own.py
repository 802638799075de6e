"""Commands for a user's own text: lay out a project, report on its rows."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cedkv.cli.look import WARNED
from cedkv.core.errors import UserError

if TYPE_CHECKING:
    from cedkv.config import Config
    from cedkv.data.encode import EncodedCorpus
    from cedkv.data.own.asked import Asked
    from cedkv.data.own.clozes import Kind
    from cedkv.data.own.project import Project
    from cedkv.data.records import Corpus, Document
    from cedkv.models.load import LoadedModel, LoadedTokenizer

STUDY = "self-study"
BY_RULE: tuple[Kind, ...] = ("cloze", "continuation")
PROMPTS = (*BY_RULE, STUDY)
EMBEDDED = "embedded"
SEED = 3407
_LEAST_TOKENS = 64


def init_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``cedkv init``."""
    parser.add_argument("folder", metavar="DIR", help="new or empty")
    parser.add_argument(
        "--model",
        metavar="NAME_OR_PATH",
        default=EMBEDDED,
        help="folder or name on the hub; default: the model that ships with the package",
    )
    parser.add_argument(
        "--from",
        dest="texts",
        metavar="PATH",
        nargs="+",
        action="extend",
        default=[],
        help="your text: .txt and .md files, folders of them, .jsonl files of rows with a 'text'; default: sentences of ours",
    )
    parser.add_argument(
        "--prompts",
        metavar="KINDS",
        type=_prompts,
        help=f"ON prompts, some of {','.join(PROMPTS)}; default: {','.join(BY_RULE)}; {STUDY}: your model asks and answers",
    )
    parser.add_argument(
        "--holdout",
        metavar="SHARE",
        type=_share,
        help="share of the documents that get no memory: their prompts are OFF prompts; default: none",
    )
    parser.add_argument("--seed", metavar="N", type=_seed, default=SEED, help="of every draw (%(default)s)")


def data_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``cedkv data``."""
    parser.add_argument("config", metavar="FILE", help="configuration")
    parser.add_argument(
        "--set", dest="overrides", metavar="KEY=VALUE", action="append", default=[], help="override one key"
    )
    parser.add_argument("--strict", action="store_true", help=f"status {WARNED} where there are findings")
    parser.add_argument("--format", choices=("table", "json"), default="table", help="of the report")


def init(arguments: argparse.Namespace) -> int:
    """Lay out a project, of our own sentences or of the user's text, once it is known to be one that can be trained."""
    from cedkv.data.own.project import CONFIG, check_free, lay_out

    folder = Path(arguments.folder)
    check_free(folder)
    if not arguments.texts and (arguments.prompts or arguments.holdout):
        raise UserError("--prompts and --holdout are about the text of --from: name some, or drop them")
    make = _of_text if arguments.texts else _of_ours
    project, loaded = make(arguments, _as_written(arguments.model, folder))

    def fill(fresh: Path) -> None:
        project.write(fresh)
        _read(_resolved(fresh / CONFIG), loaded)  # what cannot be trained never appears

    lay_out(folder, fill)
    print(f"{folder}: {project.summary()}")
    for remark in project.remarks:
        print(f"- {remark}")
    print(f"how to go on: {folder / 'README.md'}")
    return 0


def data(arguments: argparse.Namespace) -> int:
    """Report on the rows of a configuration as training would use them; no weights are loaded, nothing is written."""
    config = _resolved(Path(arguments.config), arguments.overrides)
    from cedkv.config import JsonlData
    from cedkv.data.encode import encode_off
    from cedkv.data.jsonl import read_documents
    from cedkv.data.review import review
    from cedkv.report.data_report import to_json, to_table

    given = 0
    if isinstance(config.data, JsonlData):
        given = len(read_documents(config.path(config.data.documents)))
    loaded = _tokenizer(config.model_source, trust_remote_code=config.model.trust_remote_code)
    corpus, encoded = _read(config, loaded)
    context = loaded.context_length
    sealed = encode_off(loaded.tokenizer, corpus.sealed, context) if corpus.sealed else ()
    found = review(config, corpus, encoded, sealed, context=context, documents_given=given)
    print(to_json(found) if arguments.format == "json" else to_table(found), end="")
    return WARNED if arguments.strict and found.findings else 0


def _of_ours(arguments: argparse.Namespace, model: str) -> tuple[Project, LoadedTokenizer]:
    from cedkv.data.own.assemble import sample_project

    return sample_project(model, arguments.seed), _tokenizer(arguments.model)


def _of_text(arguments: argparse.Namespace, model: str) -> tuple[Project, LoadedTokenizer | LoadedModel]:
    """The project of the user's own text, and what knows its tokens."""
    from cedkv.data.own.sources import DOCUMENT_TOKENS, cut, read_sources

    sources = read_sources(map(Path, arguments.texts))
    from cedkv.data.own.assemble import text_project
    from cedkv.data.own.clozes import CLOZE_TOKENS
    from cedkv.data.own.off import divide

    prompts: tuple[str, ...] = arguments.prompts or BY_RULE
    room = CLOZE_TOKENS
    loaded: LoadedTokenizer | LoadedModel
    if STUDY in prompts:
        from cedkv.models.load import load_model
        from cedkv.train.self_study import ASKING_TOKENS

        room, loaded = ASKING_TOKENS, load_model(_expanded(arguments.model))
    else:
        loaded = _tokenizer(arguments.model)
    limit = min(DOCUMENT_TOKENS, loaded.context_length - room)
    if limit < _LEAST_TOKENS:
        raise UserError(
            f"--model {arguments.model!r} has a context of {loaded.context_length} tokens, of which --prompts "
            f"{','.join(prompts)} takes {room}: too few are left for a document; take a model with a longer context"
        )
    documents = divide(cut(sources, loaded.tokenizer, limit), arguments.holdout or 0.0, arguments.seed)
    asked, remarks, forms = _ask(loaded, documents.all, prompts, arguments.seed)
    if arguments.model == EMBEDDED:
        remarks.append(
            "The model that ships with cedkv reads its own small world only: for your text, name yours with --model."
        )
    return text_project(model, documents, asked, seed=arguments.seed, remarks=remarks, forms=forms), loaded


def _ask(
    loaded: LoadedTokenizer | LoadedModel, documents: Sequence[Document], prompts: Sequence[str], seed: int
) -> tuple[dict[str, list[Asked]], list[str], list[Callable[[str], str]]]:
    """What every document is asked in the ways that are wanted, what should be known about it, and its forms."""
    from cedkv.data.own.assemble import SEPARATOR
    from cedkv.data.own.clozes import ask_by_rule
    from cedkv.models.load import LoadedModel

    asked: dict[str, list[Asked]] = {document.id: [] for document in documents}
    remarks: list[str] = []
    forms: list[Callable[[str], str]] = []
    kinds = [kind for kind in BY_RULE if kind in prompts]
    if kinds:
        remarks.append(
            f"ON prompts of the kind {' and '.join(kinds)} are sentences of the documents, broken off: they ask for wording, "
            "not for understanding."
        )
        forms.append(str)
        for name, found in ask_by_rule(documents, loaded.tokenizer, kinds=kinds, seed=seed).items():
            asked[name] += found
    if isinstance(loaded, LoadedModel):
        from cedkv.train.self_study import as_prompt, study

        studied = study(loaded, documents, separator=SEPARATOR, seed=seed, say=_say)
        remarks.append(studied.remark)
        forms.append(partial(as_prompt, loaded))
        for name, found in studied.asked.items():
            asked[name] += found
    return asked, remarks, forms


def _read(config: Config, loaded: LoadedTokenizer | LoadedModel) -> tuple[Corpus, EncodedCorpus]:
    """The corpus as training reads it, with the errors that training would end with."""
    from cedkv.data.build import build_corpus
    from cedkv.data.encode import encode_corpus

    corpus = build_corpus(config)
    return corpus, encode_corpus(config, corpus, loaded.tokenizer, loaded.context_length)


def _resolved(path: Path, overrides: Sequence[str] = ()) -> Config:
    from cedkv.config import load

    loaded = load(path, overrides, env=os.environ)
    for note in loaded.notes:
        _say(f"note: {note}")
    return loaded.config


def _tokenizer(model: str, *, trust_remote_code: bool = False) -> LoadedTokenizer:
    from cedkv.models.load import load_tokenizer

    return load_tokenizer(_expanded(model), trust_remote_code=trust_remote_code)


def _expanded(model: str) -> str:
    return str(Path(model).expanduser()) if model.startswith("~") else model


def _as_written(model: str, folder: Path) -> str:
    """A model's name as the configuration in ``folder`` writes it: the path of a folder starts there."""
    if model == EMBEDDED or model.startswith(("/", "~")) or not Path(model).is_dir():
        return model
    path = os.path.relpath(model, folder)
    return path if path.startswith(".") else f"./{path}"


def _say(message: str) -> None:
    print(f"cedkv: {message}", file=sys.stderr, flush=True)


def _prompts(text: str) -> tuple[str, ...]:
    chosen = text.split(",")
    unknown = [name for name in chosen if name not in PROMPTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(PROMPTS)}")
    return tuple(name for name in PROMPTS if name in chosen)


def _share(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0.0 < number < 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share over 0 and under 1")
    return number


def _seed(text: str) -> int:
    number = int(text) if text.isdecimal() else -1
    if not 0 <= number < 1 << 32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to {(1 << 32) - 1}")
    return number
