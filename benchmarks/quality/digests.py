"""Whether two commits behave alike, bit for bit: digests of concepts, pictures and texts at fixed seeds.

    python -m benchmarks.quality.digests --out before.json       # on the one commit
    python -m benchmarks.quality.digests --compare before.json   # on the other: a line for each difference, exit code 1

Uses public names alone, and nothing of its neighbours, so that the file also runs on a commit that does not have it:
copy it away and run it with PYTHONPATH set to that commit. One thread; three minutes. Equal digests need equal
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
#: what is drawn in one batch, and one noise seed for each
SCENES = ("a banana and a dog on the grass", "a red car to the left of an orange", "a cat at night")
STEPS, GUIDANCE = 4, 3.0
STRENGTHS = (0.0, 1.0, -1.0)
MESSAGES = ("you useless clown! my washer does not start.", "could you please help me? my parcel is late.")
TOKENS = 24
#: methods and gates that are learned beside the default, in the denoiser
LEARNED = ({"method": "linear-act"}, {"gate": "gaps"}, {"method": "casteer"})


def digest(*values: bytes | str) -> str:
    """Sixteen hex digits."""
    found = hashlib.sha256()
    for value in values:
        found.update(value.encode() if isinstance(value, str) else value)
    return found.hexdigest()[:16]


def of_pictures(pictures: Any) -> str:
    return digest(*(np.asarray(picture).tobytes() for picture in pictures))


def of_concept(concept: Any) -> dict[str, str]:
    """Digests of a concept: its own, that of the tensors in its file, and that of its evidence."""
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory() as folder:
        (file,) = Path(concept.save_pretrained(Path(folder) / "concept")).glob("*.safetensors")
        tensors = load_file(file)
    stored = [part for name in sorted(tensors) for part in (name, tensors[name].float().numpy().tobytes())]
    evidence = json.dumps(concept.evidence, sort_keys=True, default=str)
    return {"digest": concept.digest, "tensors": digest(*stored), "evidence": digest(evidence)}


class Record:
    """What was found by the name of each case; an error is a finding as well."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}

    def add(self, name: str, work: Callable[[], str | Mapping[str, str]]) -> None:
        torch.manual_seed(0)
        try:
            value = work()
        except Exception as error:
            value = f"{type(error).__name__}: {error}"
        parts = {"": value} if isinstance(value, str) else {f", {part}": one for part, one in value.items()}
        for part, one in parts.items():
            self.found[f"{name}{part}"] = one
            print(f"{name}{part}: {one}", file=sys.stderr, flush=True)


def shipped(record: Record) -> list[Any]:
    """Every concept that comes with the package."""
    described = dsas_core.shipped()
    for one in described:
        record.add(f"shipped {one.name}", lambda one=one: of_concept(dsas_core.Concept.from_pretrained(one.name)))
    return described


def pictures(record: Record, pipe: Any, concepts: list[str]) -> None:
    """Pictures of every concept at every strength, and of every way to steer."""

    def draw(**options: Any) -> Any:
        generators = [torch.Generator().manual_seed(seed) for seed in range(len(SCENES))]
        given = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "generator": generators, **options}
        return pipe(list(SCENES), **given).images

    def steered(strengths: Any, **options: Any) -> str:
        with dsas.steer(pipe, strengths, **options):
            return of_pictures(draw())

    def traced(name: str) -> dict[str, str]:
        with dsas.steer(pipe, {name: 1.0}, trace=True) as steering:
            made = draw()
            own = name.partition(":")[2]
            heat = steering.trace.heatmap(own, made[0])
            return {"mean h": repr(steering.trace.mean_h(own)), "heat-map": of_pictures([heat])}

    def called_back(name: str) -> str:
        with dsas.steer(pipe, {name: 0.0}) as steering:
            callback = dsas.DSASCallback(steering, {name.partition(":")[2]: {0: 0.0, 2: 1.0}})
            return of_pictures(draw(callback_on_step_end=callback))

    record.add("pictures, unsteered", lambda: of_pictures(draw()))
    for name in concepts:
        for strength in STRENGTHS:
            record.add(f"pictures, {name} {strength:+g}", lambda n=name, s=strength: steered({n: s}))
    text, other = "builtin:banana-blur", "builtin:red-to-blue"
    words = "builtin:fruit-to-pear"  # in the denoiser
    ways: dict[str, tuple[Any, dict[str, Any]]] = {
        "gate on": ({text: 1.0}, {"gate": "on"}),
        "gate off": ({text: 1.0}, {"gate": "off"}),
        "gate on, in the denoiser": ({words: 1.0}, {"gate": "on"}),
        "two at once": ({text: 1.0, other: 0.7}, {}),
        "two at once, blended": ({text: 1.0, other: 0.7}, {"combine": "blend"}),
        "a strength for each prompt": ({text: [0.0, 0.5, 1.0]}, {}),
        "auto": ({text: "auto"}, {}),
        "words": ({words: 1.0}, {"words": {"fruit-to-pear": "orange"}}),
        "schedule": ({words: 1.0}, {"schedule": dsas.Schedule([(1000, 0.0), (700, 1.0)])}),
        "both rows": ({words: 1.0}, {"rows": "both"}),
        "bins interpolated": ({words: 1.0}, {"interpolate_bins": True}),
        "processor": ({words: 1.0}, {"attach": "processor"}),
    }
    for name, (strengths, options) in ways.items():
        record.add(f"pictures, {name}", lambda s=strengths, o=options: steered(s, **o))
    record.add("pictures, trace", lambda: traced(text))
    record.add("pictures, trace in the denoiser", lambda: traced(words))
    record.add("pictures, callback", lambda: called_back(words))
    record.add("pictures, detached", lambda: of_pictures(draw()))


def texts(record: Record, model: Any, tokenizer: Any) -> None:
    """Answers at several strengths, greedy and sampled."""

    def answers(sample: bool, seed: int = 0) -> str:
        torch.manual_seed(seed)
        said = []
        for message in MESSAGES:
            turn = [{"role": "user", "content": message}]
            given = tokenizer.apply_chat_template(
                turn, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            out = model.generate(**given, max_new_tokens=TOKENS, do_sample=sample)
            said.append(tokenizer.decode(out[0].tolist()))
        return digest(*said)

    def steered(strength: Any, sample: bool = False, seed: int = 0, **options: Any) -> str:
        with llm.steer(model, {"builtin:rudeness": strength}, **options):
            return answers(sample, seed)

    def traced() -> str:
        with llm.steer(model, {"builtin:rudeness": 1.0}, trace=True, tokenizer=tokenizer) as steering:
            answers(False)
            return repr(steering.trace.mean_h("rudeness"))

    record.add("texts, unsteered", lambda: answers(False))
    for strength in (0.0, 0.5, 1.0, 2.0, -1.0, "auto"):
        record.add(f"texts, {strength}", lambda s=strength: steered(s))
    for seed in (0, 1):
        record.add(f"texts, sampled with seed {seed}", lambda s=seed: steered(1.0, sample=True, seed=s))
    record.add("texts, gate on", lambda: steered(1.0, gate="on"))
    record.add("texts, gate off", lambda: steered(1.0, gate="off"))
    record.add("texts, answer alone", lambda: steered(1.0, phase="generation"))
    record.add("texts, trace", traced)
    record.add("texts, detached", lambda: answers(False))


def learned(record: Record, pipe: Any, model: Any, tokenizer: Any) -> None:
    """Small concepts, learned now."""
    few: dict[str, Any] = {"steps": 2, "count": 12, "seed": 0}
    bananas = PROMPTS / "banana-blur.yaml"
    record.add("learned pictures", lambda: of_concept(dsas.learn(pipe, bananas, **few)))
    for options in ({}, *LEARNED):
        name = "learned pictures, in the denoiser" + "".join(f", {key} {value}" for key, value in options.items())
        record.add(name, lambda o=options: of_concept(dsas.learn(pipe, bananas, sites="denoiser", **few, **o)))
    rude = PROMPTS / "rudeness.yaml"
    for options in ({}, {"gate": "cast"}, {"method": "iti-c"}):
        name = "learned texts" + "".join(f", {key} {value}" for key, value in options.items())
        record.add(name, lambda o=options: of_concept(llm.learn(model, tokenizer, rude, count=16, seed=0, **o)))


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
    record = Record()
    described = shipped(record)
    pipe, (model, tokenizer) = dsas.load_pipeline("builtin:emoji"), llm.load("builtin:chat")
    pipe.set_progress_bar_config(disable=True)
    if "pictures" in args.parts:
        pictures(record, pipe, [one.name for one in described if one.model == "builtin:emoji"])
    if "texts" in args.parts:
        texts(record, model, tokenizer)
    if "learned" in args.parts:
        learned(record, pipe, model, tokenizer)
    document = json.dumps(record.found, indent=2, ensure_ascii=False) + "\n"
    if args.out:
        args.out.write_text(document)
    elif before is None:
        print(document, end="")
    if before is None:
        return 0
    lines = differences(before, record.found)
    print("\n".join(lines) if lines else f"{len(record.found)} digests, all alike")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
