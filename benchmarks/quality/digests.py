"""Compare the behaviour of two commits bit for bit: digests of concepts, pictures and texts at fixed seeds.

    python -m benchmarks.quality.digests --out before.json       # on the one commit
    python -m benchmarks.quality.digests --compare before.json   # on the other: a line for each difference, exit code 1

Imports public names only and no other benchmark, so that the file also runs on a commit that does not have it: copy it
elsewhere and run it with PYTHONPATH set to that commit. One thread; three minutes. Equal digests need equal
versions of torch, diffusers and transformers, and the same processor.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import dsas_core
import dsas_diffusion as dsas
from dsas_core import llm

PROMPTS = Path(dsas.__file__).resolve().parent.parent / "prompts"
#: prompts of one batch; the noise seed of each is its index
SCENES = ("a banana and a dog on the grass", "a red car to the left of an orange", "a cat at night")
STEPS, GUIDANCE = 4, 3.0
STRENGTHS = (0.0, 1.0, -1.0)
MESSAGES = ("you useless clown! my washer does not start.", "could you please help me? my parcel is late.")
TOKENS = 24
#: options of concepts that are learned in the denoiser, beside the default
LEARN_OPTIONS = ({"method": "linear-act"}, {"gate": "gaps"}, {"method": "casteer"})


def digest(*values: bytes | str) -> str:
    """SHA-256 of all values, its first sixteen hex digits."""
    checksum = hashlib.sha256()
    for value in values:
        checksum.update(value.encode() if isinstance(value, str) else value)
    return checksum.hexdigest()[:16]


def digest_pictures(pictures: Any) -> str:
    """The digest of the pixels of several pictures."""
    return digest(*(np.asarray(picture).tobytes() for picture in pictures))


def digest_concept(concept: Any) -> dict[str, str]:
    """The digests of a concept: its own, of the tensors in its file, and of its evidence."""
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory() as folder:
        (file,) = Path(concept.save_pretrained(Path(folder) / "concept")).glob("*.safetensors")
        tensors = load_file(file)
    stored = [part for name in sorted(tensors) for part in (name, tensors[name].float().numpy().tobytes())]
    lasting = {name: value for name, value in concept.evidence.items() if name != "cost"}  # seconds differ
    evidence = json.dumps(lasting, sort_keys=True, default=str)
    return {"digest": concept.digest, "tensors": digest(*stored), "evidence": digest(evidence)}


class Digests:
    """Digests by the name of their case; an error counts as a digest, too."""

    def __init__(self) -> None:
        self.by_case: dict[str, str] = {}

    def add(self, name: str, work: Callable[[], str | Mapping[str, str]]) -> None:
        """Run a case and note its digest, or one for each of its parts."""
        torch.manual_seed(0)
        try:
            value = work()
        except Exception as error:
            value = f"{type(error).__name__}: {error}"
        parts = {"": value} if isinstance(value, str) else {f", {part}": text for part, text in value.items()}
        for part, text in parts.items():
            self.by_case[f"{name}{part}"] = text
            print(f"{name}{part}: {text}", file=sys.stderr, flush=True)


def add_shipped(digests: Digests) -> list[Any]:
    """Every concept that ships with the package; returns their descriptions."""
    concepts = dsas_core.shipped()
    for entry in concepts:
        digests.add(f"shipped {entry.name}", lambda n=entry.name: digest_concept(dsas_core.Concept.from_pretrained(n)))
    return concepts


def add_pictures(digests: Digests, pipe: Any, concepts: list[str]) -> None:
    """Pictures of every concept at every strength, and of every option of `steer`."""

    def draw(**options: Any) -> Any:
        generators = [torch.Generator().manual_seed(seed) for seed in range(len(SCENES))]
        settings = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "generator": generators, **options}
        return pipe(list(SCENES), **settings).images

    def draw_steered(strengths: Any, **options: Any) -> str:
        with dsas.steer(pipe, strengths, **options):
            return digest_pictures(draw())

    def draw_traced(concept: Any) -> dict[str, str]:
        with dsas.steer(pipe, {concept: 1.0}, trace=True) as steering:
            images = draw()
            heat = steering.trace.heatmap(concept.name, images[0])
            return {"mean h": repr(steering.trace.mean_h(concept.name)), "heat-map": digest_pictures([heat])}

    def draw_with_callback(concept: Any) -> str:
        with dsas.steer(pipe, {concept: 0.0}) as steering:
            callback = dsas.DSASCallback(steering, {concept.name: {0: 0.0, 2: 1.0}})
            return digest_pictures(draw(callback_on_step_end=callback))

    digests.add("pictures, unsteered", lambda: digest_pictures(draw()))
    for name in concepts:
        for strength in STRENGTHS:
            digests.add(f"pictures, {name} {strength:+g}", lambda n=name, s=strength: draw_steered({n: s}))
    banana, colour = (dsas.Concept.from_pretrained(f"builtin:{name}") for name in ("banana-blur", "dog-grey"))
    pear = dsas.learn(pipe, PROMPTS / "fruit-to-pear.yaml", sites="denoiser", count=8, steps=STEPS)  # at patches
    cases: dict[str, tuple[Any, dict[str, Any]]] = {
        "gate on": ({banana: 1.0}, {"gate": "on"}),
        "gate off": ({banana: 1.0}, {"gate": "off"}),
        "gate on, in the denoiser": ({pear: 1.0}, {"gate": "on"}),
        "two at once": ({banana: 1.0, colour: 0.7}, {}),
        "two at once, blended": ({banana: 1.0, colour: 0.7}, {"combine": "blend"}),
        "a strength for each prompt": ({banana: [0.0, 0.5, 1.0]}, {}),
        "auto": ({banana: "auto"}, {}),
        "words": ({pear: 1.0}, {"words": {"fruit-to-pear": "orange"}}),
        "schedule": ({pear: 1.0}, {"schedule": dsas.Schedule([(1000, 0.0), (700, 1.0)])}),
        "both rows": ({pear: 1.0}, {"rows": "both"}),
        "bins interpolated": ({pear: 1.0}, {"interpolate_bins": True}),
        "processor": ({pear: 1.0}, {"attach": "processor"}),
    }
    for name, (strengths, options) in cases.items():
        digests.add(f"pictures, {name}", lambda s=strengths, o=options: draw_steered(s, **o))
    digests.add("pictures, trace", lambda: draw_traced(banana))
    digests.add("pictures, trace in the denoiser", lambda: draw_traced(pear))
    digests.add("pictures, callback", lambda: draw_with_callback(pear))
    digests.add("pictures, detached", lambda: digest_pictures(draw()))


def add_texts(digests: Digests, model: Any, tokenizer: Any) -> None:
    """Answers at several strengths, greedy and sampled."""

    def digest_answers(sample: bool, seed: int = 0) -> str:
        torch.manual_seed(seed)
        decoded = []
        for message in MESSAGES:
            turn = [{"role": "user", "content": message}]
            inputs = tokenizer.apply_chat_template(
                turn, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            out = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=sample)
            decoded.append(tokenizer.decode(out[0].tolist()))
        return digest(*decoded)

    def digest_steered(strength: Any, sample: bool = False, seed: int = 0, **options: Any) -> str:
        with llm.steer(model, {"builtin:rudeness": strength}, **options):
            return digest_answers(sample, seed)

    def trace_mean_h() -> str:
        with llm.steer(model, {"builtin:rudeness": 1.0}, trace=True, tokenizer=tokenizer) as steering:
            digest_answers(False)
            return repr(steering.trace.mean_h("rudeness"))

    digests.add("texts, unsteered", lambda: digest_answers(False))
    for strength in (0.0, 0.5, 1.0, 2.0, -1.0, "auto"):
        digests.add(f"texts, {strength}", lambda s=strength: digest_steered(s))
    for seed in (0, 1):
        digests.add(f"texts, sampled with seed {seed}", lambda s=seed: digest_steered(1.0, sample=True, seed=s))
    digests.add("texts, gate on", lambda: digest_steered(1.0, gate="on"))
    digests.add("texts, gate off", lambda: digest_steered(1.0, gate="off"))
    digests.add("texts, answer alone", lambda: digest_steered(1.0, phase="generation"))
    digests.add("texts, trace", trace_mean_h)
    digests.add("texts, detached", lambda: digest_answers(False))


def add_learned(digests: Digests, pipe: Any, model: Any, tokenizer: Any) -> None:
    """Concepts learned with few prompts."""
    settings: dict[str, Any] = {"steps": 2, "count": 12, "seed": 0}
    bananas = PROMPTS / "banana-blur.yaml"
    digests.add("learned pictures", lambda: digest_concept(dsas.learn(pipe, bananas, **settings)))
    for options in ({}, *LEARN_OPTIONS):
        name = "learned pictures, in the denoiser" + "".join(f", {key} {value}" for key, value in options.items())
        digests.add(
            name, lambda o=options: digest_concept(dsas.learn(pipe, bananas, sites="denoiser", **settings, **o))
        )
    rude = PROMPTS / "rudeness.yaml"
    for options in ({}, {"gate": "cast"}, {"method": "iti-c"}):
        name = "learned texts" + "".join(f", {key} {value}" for key, value in options.items())
        digests.add(name, lambda o=options: digest_concept(llm.learn(model, tokenizer, rude, count=16, seed=0, **o)))


def differences(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """A line for each case that is not alike."""
    lines = []
    for name in {**before, **after}:
        old, new = before.get(name, "nothing of that name"), after.get(name, "nothing of that name")
        if old != new:
            lines.append(f"{name}: was {old}, is {new}")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="file to write; without it, standard output")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="what --out wrote on another commit")
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=("pictures", "texts", "learned"),
        default=["pictures", "texts", "learned"],
        help="beside the concepts that ship; all without it",
    )
    args = parser.parse_args()
    before = json.loads(args.compare.read_text()) if args.compare else None
    torch.set_num_threads(1)
    digests = Digests()
    concepts = add_shipped(digests)
    pipe, (model, tokenizer) = dsas.load_pipeline("builtin:emoji"), llm.load("builtin:chat")
    pipe.set_progress_bar_config(disable=True)
    if "pictures" in args.parts:
        add_pictures(digests, pipe, [entry.name for entry in concepts if entry.model == "builtin:emoji"])
    if "texts" in args.parts:
        add_texts(digests, model, tokenizer)
    if "learned" in args.parts:
        add_learned(digests, pipe, model, tokenizer)
    document = json.dumps(digests.by_case, indent=2, ensure_ascii=False) + "\n"
    if args.out:
        args.out.write_text(document)
    elif before is None:
        print(document, end="")
    if before is None:
        return 0
    lines = differences(before, digests.by_case)
    print("\n".join(lines) if lines else f"{len(digests.by_case)} digests, all alike")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
