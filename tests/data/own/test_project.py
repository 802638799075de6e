"""A project's folder: whole or not at all, and what stands in it works."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from cedkv.cli.parser import parse
from cedkv.config import load
from cedkv.core.errors import UserError
from cedkv.data.build import build_corpus
from cedkv.data.own.assemble import sample_project
from cedkv.data.own.project import CONFIG, check_free, lay_out, sizes_for


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home") / "project"
    lay_out(folder, sample_project("embedded", 1).write)
    return folder


def test_the_configuration_is_valid_in_both_phases_and_reads_every_row(sample: Path) -> None:
    for phase in (2, 3):
        loaded = load(sample / CONFIG, phase=phase, strict_hf=True, env={"CI": "true"})
        assert loaded.notes == ()
    corpus = build_corpus(loaded.config)
    lines = {name: (sample / "data" / f"{name}.jsonl").read_text().count("\n") for name in ("on", "off")}
    assert lines["on"] == len(corpus.on_train) + len(corpus.on_eval)
    assert lines["off"] == len(corpus.off_train) + len(corpus.stress) + len(corpus.sealed)


def test_the_documents_of_the_sample_state_what_is_asked(sample: Path) -> None:
    corpus = build_corpus(load(sample / CONFIG, env={}).config)
    texts = {document.id: document.text for document in corpus.documents}
    assert all(document.spans for document in corpus.documents)
    for row in (*corpus.on_train, *corpus.on_eval):
        assert row.answer.strip() in texts[row.document]
    near = [row for row in corpus.stress if row.family == "near_miss"]
    assert len(near) == len(corpus.stress) // 2


@pytest.mark.parametrize("page", ["README.md", "OWN.md"])
def test_every_command_of_the_pages_is_one(sample: Path, page: str) -> None:
    folder = sample if page == "README.md" else Path(__file__).parents[3] / "configs"
    text = (folder / page).read_text(encoding="utf-8")
    (block,) = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    for line in block.splitlines():
        name, *arguments = shlex.split(line, comments=True)
        assert name == "cedkv"
        assert callable(parse(arguments).run)


def test_the_same_seed_makes_the_same_files(sample: Path, tmp_path: Path) -> None:
    for seed, same in ((1, True), (2, False)):
        lay_out(tmp_path / str(seed), sample_project("embedded", seed).write)
        for name in ("on", "off"):
            again = (tmp_path / str(seed) / "data" / f"{name}.jsonl").read_bytes()
            assert (again == (sample / "data" / f"{name}.jsonl").read_bytes()) == same


# ------------------------------------------------------------------------------------------------- whole or not at all
def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize(
    "failure", [UserError("no"), OSError(28, "No space left on device"), KeyboardInterrupt()]
)
@pytest.mark.parametrize("there", [False, True])
def test_what_fails_leaves_nothing_behind(tmp_path: Path, failure: BaseException, there: bool) -> None:
    if there:
        (tmp_path / "project").mkdir()
    before = tree(tmp_path)

    def fill(fresh: Path) -> None:
        (fresh / "half").write_text("written")
        raise failure

    wanted = UserError if isinstance(failure, OSError) else type(failure)
    with pytest.raises(wanted):
        lay_out(tmp_path / "project", fill)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ["project", "deep/er/project"])
def test_a_project_takes_the_place_of_nothing_or_of_an_empty_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "project").mkdir()
    lay_out(tmp_path / name, lambda fresh: (fresh / "file").touch())
    assert (tmp_path / name / "file").exists()
    assert (tmp_path / name).stat().st_mode & 0o777 == (tmp_path / "project").stat().st_mode & 0o777
    assert not [path for path in tree(tmp_path) if ".project" in path]


def test_a_folder_that_is_taken_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("precious")
    (tmp_path / "file").touch()
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    for name, why in (("full", "holds files already"), ("file", "is no folder"), ("gone", "is no folder")):
        with pytest.raises(
            UserError, match=rf"{name}: {why}; a project is laid out in a new or empty folder"
        ):
            check_free(tmp_path / name)
    assert (tmp_path / "full" / "mine").read_text() == "precious"


def test_off_prompts_grow_with_the_slots_up_to_a_limit() -> None:
    assert sizes_for(2).train == 2 * 8 * 64
    assert sizes_for(64).train == sizes_for(1000).train == 32768
