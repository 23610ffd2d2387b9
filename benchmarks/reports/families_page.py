"""docs/families.md: which feature was tested with which family of pipelines, from a run of the tests.

    make families                       # run the tests and write the page
    python -m benchmarks.reports.families_page FILE  # write the page from the JUnit file of such a run

Writes docs/families.md and benchmarks/results/families.json. A feature counts as tested where every test of it with
that family passed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.common.records import DOCS, build_parser, record_path, write_record
from dsas_core.evaluation import report
from dsas_core.utils.versions import versions

FIGURES = record_path(__file__)

#: feature -> its tests, as "file::function"; one of the words of their parameters is the family
FEATURES: Mapping[str, tuple[str, ...]] = {
    "off and detached are bit-exact, at every role": (
        "test_identities_by_family::test_off_and_detached_are_bit_exact",
    ),
    "one strength per prompt": ("test_identities_by_family::test_strengths_of_a_batch_are_those_of_single_pictures",),
    "timestep": ("test_identities_by_family::test_calls_have_their_timestep",),
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
#: the test of compatibility with other uses of a pipeline; its parameters are "EVENT-FAMILY-…"
COMPATIBILITY = "test_compatibility::test_steering_lives_with"


#: the parameters of a test, and whether it passed; None where it was skipped
Case = tuple[str, bool | None]


def parse_junit(junit: Path) -> dict[str, list[Case]]:
    """The cases of each test, by "file::function"."""
    cases: dict[str, list[Case]] = {}
    for element in ElementTree.parse(junit).getroot().iter("testcase"):
        function, _, parameters = str(element.get("name")).partition("[")
        key = f"{str(element.get('classname')).rpartition('.')[2]}::{function}"
        failed = any(element.find(kind) is not None for kind in ("failure", "error"))
        passed = None if element.find("skipped") is not None else not failed
        cases.setdefault(key, []).append((parameters.removesuffix("]"), passed))
    return cases


def tabulate(
    cases_by_test: Mapping[str, Iterable[tuple[str, bool | None]]], families: Iterable[str]
) -> dict[str, dict[str, Any]]:
    """Whether all cases passed, by feature and family; None where no case ran."""
    table: dict[str, dict[str, bool | None]] = {}
    for feature, names in FEATURES.items():
        cases = [case for name in names for case in cases_by_test.get(name, ())]
        table[feature] = {}
        for family in families:
            outcomes = [
                passed for parameters, passed in cases if family in parameters.split("-") and passed is not None
            ]
            table[feature][family] = all(outcomes) if outcomes else None
    for parameters, passed in cases_by_test.get(COMPATIBILITY, ()):
        event, family, _ = parameters.rsplit("-", 2)
        cells = table.setdefault(event, dict.fromkeys(families))
        if passed is not None and family in cells:
            cells[family] = passed and cells[family] is not False
    return table


def render_page(document: Mapping[str, Any]) -> str:
    """The text of docs/families.md."""
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
        *report.markdown_table(["", *(family["name"] for family in families.values())], rows),
        "",
    ]
    headings = ["family", "denoiser", "roles of sites", "default", "tested as"]
    rows = [
        [item["name"], item["class"], ", ".join(item["roles"]), ", ".join(item["default"]), item["tested"]]
        for item in families.values()
    ]
    version_list = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    return "\n".join([*lines, *report.markdown_table(headings, rows), "", f"{version_list}.", ""])


def describe_families() -> dict[str, dict[str, Any]]:
    """Name, denoiser class, roles and default sites of every family, by its key in the tests."""
    from dsas_diffusion.pipelines.adapter import adapt
    from tests.fixtures.pipelines import FAMILIES, build

    families = {}
    for key in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            pipe = build(key, Path(folder))
        family = adapt(pipe).family
        families[key] = {
            "name": family.name,
            "class": type(getattr(pipe, family.denoiser)).__name__,
            "roles": list(family.groups),
            "default": list(family.default),
            "tested": "a pipeline",
        }
    return families


def main() -> None:
    parser = build_parser(__doc__)
    parser.add_argument("junit", type=Path, help="what pytest --junitxml wrote")
    args = parser.parse_args()
    families = describe_families()
    document = {
        "families": families,
        "features": tabulate(parse_junit(args.junit), families),
        "versions": versions("diffusers", "transformers"),
    }
    write_record(FIGURES, document)
    (DOCS / "families.md").write_text(render_page(document))


if __name__ == "__main__":
    main()
