"""docs/families.md: what was tested with which family, from a run of the tests.

    make families                       # runs the tests, then writes
    python -m benchmarks.reports.families_page FILE  # writes from a junit file of such a run

Writes docs/families.md and benchmarks/results/families.json. A feature counts as tested where every test of it with
that family passed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.common.records import DOCS, parser_of, results_of, write
from dsas_core.evaluation import report
from dsas_core.utils.versions import versions

FIGURES = results_of(__file__)

#: what a user would ask for -> the tests that show it, by file and function; the first word of their parameters, or of
#: those of a pipeline, tells the family
FEATURES: Mapping[str, tuple[str, ...]] = {
    "off and detached are bit-exact, at every role": (
        "test_identities_by_family::test_off_and_detached_are_bit_exact",
    ),
    "one strength per prompt": ("test_identities_by_family::test_strengths_of_a_batch_are_those_of_single_pictures",),
    "timestep": ("test_identities_by_family::test_the_clock_shows_the_timestep",),
    "rows of guidance": (
        "test_identities_by_family::test_rows_of_guidance",
        "test_identities_by_family::test_rows_of_negative_prompts_are_untouched",
        "test_identities_by_family::test_without_guidance_every_row_has_a_prompt",
    ),
    "embeddings alone, no text encoder loaded": (
        "test_identities_by_family::test_embeddings_are_enough_where_no_text_encoder_is_loaded",
    ),
    "learning, heat-map, saving": ("test_identities_by_family::test_learning",),
    "attention processor": ("test_processor::test_it_gives_the_same_picture_as_the_hook",),
    "callback": ("test_callback::test_a_change_acts_from_the_step_after_it",),
    "image to image, inpainting, ControlNet or PAG": ("test_other_pipelines::test_rows",),
}
#: of what else happens to pipelines: "EVENT-FAMILY-…"
LIVES_WITH = "test_compatibility::test_steering_lives_with"


#: the parameters of a test, and whether it passed; None where it was skipped
Case = tuple[str, bool | None]


def outcomes(junit: Path) -> dict[str, list[Case]]:
    """The cases of each test, by "file::function"."""
    found: dict[str, list[Case]] = {}
    for case in ElementTree.parse(junit).getroot().iter("testcase"):
        function, _, parameters = str(case.get("name")).partition("[")
        key = f"{str(case.get('classname')).rpartition('.')[2]}::{function}"
        failed = any(case.find(kind) is not None for kind in ("failure", "error"))
        passed = None if case.find("skipped") is not None else not failed
        found.setdefault(key, []).append((parameters.removesuffix("]"), passed))
    return found


def tested(
    found: Mapping[str, Iterable[tuple[str, bool | None]]], families: Iterable[str]
) -> dict[str, dict[str, Any]]:
    """By feature and family: whether all of its cases passed; None where there was none."""
    table: dict[str, dict[str, bool | None]] = {}
    for feature, names in FEATURES.items():
        cases = [case for name in names for case in found.get(name, ())]
        table[feature] = {}
        for family in families:
            own = [passed for parameters, passed in cases if family in parameters.split("-") and passed is not None]
            table[feature][family] = all(own) if own else None
    for parameters, passed in found.get(LIVES_WITH, ()):
        event, family, _ = parameters.rsplit("-", 2)
        cells = table.setdefault(event, dict.fromkeys(families))
        if passed is not None and family in cells:
            cells[family] = passed and cells[family] is not False
    return table


def page(document: Mapping[str, Any]) -> str:
    """docs/families.md."""
    families: Mapping[str, Mapping[str, Any]] = document["families"]
    marks = {True: "yes", False: "FAILED", None: "–"}
    rows = [
        [feature, *(marks[cells[family]] for family in families)] for feature, cells in document["features"].items()
    ]
    lines = [
        "# Families",
        "",
        "Written by `make families` from a run of the tests; do not edit. The pipelines are tiny and random, built "
        'from configs: "yes" says that mechanics and identities hold (strength 0 leaves the picture as it was, bit '
        "for bit), not that steering does any good with real weights.",
        "",
        *report.markdown_table(["", *(about["name"] for about in families.values())], rows),
        "",
    ]
    headings = ["family", "denoiser", "roles of sites", "default", "tested as"]
    about = [
        [told["name"], told["class"], ", ".join(told["roles"]), ", ".join(told["default"]), told["tested"]]
        for told in families.values()
    ]
    versions_told = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    return "\n".join([*lines, *report.markdown_table(headings, about), "", f"{versions_told}.", ""])


def described() -> dict[str, dict[str, Any]]:
    """What the table says of every family, by the name that it has in the tests."""
    from dsas_diffusion.pipelines.adapter import adapt
    from tests.fixtures.pipelines import FAMILIES, build

    found = {}
    for key in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            pipe = build(key, Path(folder))
        family = adapt(pipe).family
        found[key] = {
            "name": family.name,
            "class": type(getattr(pipe, family.denoiser)).__name__,
            "roles": list(family.groups),
            "default": list(family.default),
            "tested": "a pipeline",
        }
    return found


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("junit", type=Path, help="what pytest --junitxml wrote")
    args = parser.parse_args()
    families = described()
    document = {
        "families": families,
        "features": tested(outcomes(args.junit), families),
        "versions": versions("diffusers", "transformers"),
    }
    write(FIGURES, document)
    (DOCS / "families.md").write_text(page(document))


if __name__ == "__main__":
    main()
