"""What the README says is what was measured."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import dsas_diffusion as dsas
from benchmarks.reports import results_page
from dsas_core.concept.builtin import shipped
from dsas_diffusion.cli import parser
from tests.fixtures.concepts import random_concept
from tests.fixtures.visitors import seen_at

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_table_of_results_is_the_generated_one() -> None:
    document = json.loads(results_page.FIGURES.read_text())
    readme = (ROOT / "README.md").read_text()
    table = results_page.overview(document)
    assert results_page.readme_with(readme, table) == readme, "run benchmarks.reports.results_page"
    assert results_page.MARKS[0] in readme
    assert table in (ROOT / "docs" / "results.md").read_text()
    assert len(document["concepts"]) >= 11


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_are_there(page: Path) -> None:
    text = page.read_text()
    linked = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    assert linked or page.name in ("families.md", "space.md")
    assert [path for path in linked if not (page.parent / path).exists()] == []
    named = re.findall(
        r"(?<![\w/])((?:benchmarks|prompts|dsas_core|dsas_diffusion|tests)/[\w/.-]+\.(?:py|yaml|json|md))", text
    )
    assert [path for path in named if not (ROOT / path).exists()] == []
    modules = re.findall(r"-m\s((?:benchmarks|dsas_core|dsas_diffusion)[\w.]*\w)", text)
    assert [name for name in modules if importlib.util.find_spec(name) is None] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_that_a_page_shows_are_understood(page: Path) -> None:
    """Every `dsas …` line of its examples, as far as its arguments go."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith(".venv/bin/dsas")]
    for line in lines:
        parser().parse_args(shlex.split(line, comments=True)[1:])
    assert lines or page.name not in ("README.md", "evaluation.md", "language-models.md")


def blocks(of: str) -> list[str]:
    """The Python of the README that has some text in it."""
    found = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return [block for block in found if of in block]


@pytest.mark.parametrize("of", ['attach="processor"', "DSASCallback"])
def test_examples_of_the_readme_run(
    of: str, ddim_pipe: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a tiny pipeline, for which nothing ships: its own concepts stand for those of the same names."""
    from diffusers.models.attention_processor import AttnProcessor

    (block,) = blocks(of)
    (source,) = set(re.findall(r'steer\(pipe, {"([\w:-]+)"', block))
    name = source.removeprefix("builtin:")
    assert source == name or source in {one.name for one in shipped("builtin:emoji")}
    concept = random_concept(seen_at(ddim_pipe, dsas.find_sites(ddim_pipe, "cross")), name=name)
    block = block.replace(source, str(concept.save_pretrained(tmp_path / name)))
    steps = {"num_inference_steps": 12} if "num_inference_steps=12" in block else {}
    torch.manual_seed(0)
    base = np.asarray(ddim_pipe("a banana and a dog", **steps).images[0])
    own = ddim_pipe.unet.attn_processors
    told: dict[str, Any] = {"dsas": dsas, "pipe": ddim_pipe, "AttnProcessor": AttnProcessor}
    torch.manual_seed(0)
    exec(block, told)
    made = np.asarray(told["image"])
    assert made.shape == base.shape
    assert ddim_pipe.unet.attn_processors == own
    if "Callback" in of:  # one picture, so from the same noise
        assert (made != base).any()
        assert capsys.readouterr().out.splitlines()[-1] == "12 12"


def test_a_space_installs_what_the_package_needs() -> None:
    page = (ROOT / "docs" / "space.md").read_text()
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    listed = re.search(r"--extra-index-url \S+\n(.*?)```", page, re.DOTALL)
    assert listed is not None
    assert listed[1].split() == needed
    front = yaml.safe_load(re.search(r"---\n(.*?)\n---", page, re.DOTALL)[1])  # type: ignore[index]
    assert (ROOT / front["app_file"]).is_file()
    assert f"gradio=={front['sdk_version']}" in (ROOT / "constraints.txt").read_text().split()
