from __future__ import annotations

from pathlib import Path

import pytest

from cedkv.config import Config, load
from cedkv.config.reference import keys, refreshed

FOLDER = Path(__file__).parents[2] / "configs"
FILES = sorted(FOLDER.glob("*.yaml"))


def test_the_promised_files_are_there() -> None:
    assert {path.name for path in FILES} >= {"base.yaml", "mid.yaml", "smoke.yaml", "stories.yaml"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
@pytest.mark.parametrize("phase", [2, 3])
def test_every_shipped_file_is_valid_without_remarks(path: Path, phase: int) -> None:
    assert load(path, phase=phase, strict_hf=True, env={"CI": "true"}).notes == ()


@pytest.mark.parametrize(
    ("name", "scale"), [("base", (64, 32768, 2048)), ("mid", (32, 128, 512)), ("smoke", (8, 32, 128))]
)
def test_scales(name: str, scale: tuple[int, int, int]) -> None:
    sizes = load(FOLDER / f"{name}.yaml", env={}).config.phase3.eval
    assert (sizes.on_samples, sizes.off_samples, sizes.off_fixed_stress.size) == scale


def test_the_reference_of_keys_is_current() -> None:
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert page == refreshed(page), "run: python -m cedkv.config configs/README.md"


def test_every_key_is_explained() -> None:
    assert [key.path for key in keys() if not key.meaning] == []
    leaves = {".".join(path) for path in _leaves(Config().model_dump(mode="json"))}
    assert leaves <= {key.path for key in keys()}


def _leaves(tree: dict[str, object], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for name, value in tree.items():
        found += _leaves(value, (*path, name)) if isinstance(value, dict) else [(*path, name)]
    return found
