"""The table of model families, read from `families.yaml`: parts, sites by role, timesteps and the layout of batches.

To add a family:

1. `families.yaml`: an entry below the class name of its denoiser; what each field means is in `spec.Family`.
2. `families.yaml`, `text_layers`: where the layers of its text encoder are, if that class is new.
3. `prompt_templates.py`: a function, named in the entry as `prompt_template`, if prompts are wrapped in instructions.
4. `spec.py`: a new field of `Family`, only if it does something that no other family does.
5. `tests/fixtures/pipelines/NAME.py`: a tiny pipeline; `test_identities_by_family.py` then runs it.

Example:
    >>> [family.name for family in FAMILIES["UNet2DConditionModel"]]
    ['Stable Diffusion XL', 'Stable Diffusion']
    >>> FAMILIES["FluxTransformer2DModel"][0].guidance
    'two calls'
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from . import prompt_templates
from .spec import Family, SiteGroup, TextEncoder

_TABLE = yaml.safe_load(Path(__file__).with_name("families.yaml").read_text("utf-8"))

#: class of a text encoder -> its layers, below its own path
TEXT_LAYERS: Mapping[str, str] = _TABLE["text_layers"]

_TEXT = SiteGroup(rf"text_encoder(_\d)?\.({'|'.join(dict.fromkeys(TEXT_LAYERS.values()))})")


def _family(entry: Mapping[str, Any]) -> Family:
    """An entry of the table as a `Family`."""
    fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in entry.items()}
    fields["encoders"] = tuple(map(_encoder, entry["encoders"]))
    fields["groups"] = {role: tuple(SiteGroup(**group) for group in sites) for role, sites in entry["groups"].items()}
    fields["groups"]["text"] = (_TEXT,)
    return Family(**fields)


def _encoder(entry: Mapping[str, Any]) -> TextEncoder:
    return TextEncoder(**{**entry, "prompt_template": getattr(prompt_templates, entry.get("prompt_template", "plain"))})


#: class of the denoiser -> its family, or those that share it, the one with more parts first
FAMILIES: Mapping[str, tuple[Family, ...]] = {
    denoiser: tuple(map(_family, entries)) for denoiser, entries in _TABLE["families"].items()
}
