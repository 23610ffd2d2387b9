"""Cost of steering a language model: tokens per second with and without, prefill and decode, interleaved in one run.

    python -m benchmarks.cost.overhead_llm --rounds 9

A Llama of about 100 M parameters with random weights, K random concepts at the output of every layer, strength 1. Each
round times every arm once, in reversed order every other round: prefill of a prompt, then decoding token by token.
`control` is the unsteered model relative to itself: the noise of this machine. Writes
benchmarks/results/overhead_llm.json.
"""

from __future__ import annotations

import json
import statistics
import time
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch

from benchmarks.common.records import build_parser, provenance, record_path, write_record
from dsas_core import llm
from dsas_core.concept.concept import Concept
from dsas_core.concept.intervention import Intervention
from dsas_core.maps import AffineMap
from dsas_core.probes import LinearProbe

#: arm -> how many concepts steer
ARMS = {"unsteered": 0, "1 concept": 1, "8 concepts": 8, "64 concepts": 64, "control": 0}


def build_model(width: int, layers: int, dtype: torch.dtype, device: str) -> Any:
    """A Llama with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=width,
        intermediate_size=int(8 / 3 * width),
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).to(device, dtype).eval().requires_grad_(False)


def build_random_concept(model: Any, number: int) -> Concept:
    """Random gates and directions at the output of every layer; the cost does not depend on their values."""
    width = model.config.hidden_size
    items = [
        Intervention(
            site,
            (LinearProbe(torch.randn(width) / width**0.5, torch.zeros(())),),
            (AffineMap(0.01 * torch.randn(width), None),),
            (1.0,),
        )
        for site in llm.find_sites(model, "block")
    ]
    return Concept(f"random {number}", tuple(items))


def measure_ratios(
    model: Any, concepts: Sequence[Concept], batch: int, prompt: int, new: int, rounds: int
) -> dict[str, Any]:
    """Seconds of prefill and of decoding `new` tokens by arm, relative to unsteered: medians and minima over rounds.

    `paired` is the median of the ratios within each round, which cancel slow changes in the speed of the machine.
    """
    ids = torch.randint(3, 32_000, (batch, prompt), device=model.device)
    mask = torch.ones_like(ids)
    times: dict[str, dict[str, list[float]]] = {arm: {"prefill": [], "decode": []} for arm in ARMS}

    def clock() -> float:
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    @torch.inference_mode()
    def run_once() -> tuple[float, float]:
        began = clock()
        out = model(input_ids=ids, attention_mask=mask, use_cache=True, logits_to_keep=1)
        prefill_seconds = clock() - began
        began = clock()
        for step in range(new):
            extended_mask = torch.ones(batch, prompt + step + 1, dtype=mask.dtype, device=mask.device)
            token = out.logits[:, -1:].argmax(-1)
            out = model(
                input_ids=token, attention_mask=extended_mask, past_key_values=out.past_key_values, use_cache=True
            )
        return prefill_seconds, clock() - began

    run_once()
    warm = torch.ones(1, 1, dtype=ids.dtype, device=model.device)
    for number in range(rounds):
        for arm in ARMS if number % 2 else reversed(ARMS):
            steering = llm.steer(model, dict.fromkeys(concepts[: ARMS[arm]], 1.0)) if ARMS[arm] else nullcontext()
            with steering:
                with torch.inference_mode():
                    model(input_ids=warm)  # what is stacked is made in the first call
                prefill_seconds, decode_seconds = run_once()
            times[arm]["prefill"].append(prefill_seconds)
            times[arm]["decode"].append(decode_seconds)
    report: dict[str, Any] = {"batch": batch}
    for part in ("prefill", "decode"):
        base = times["unsteered"][part]
        tokens = batch * (prompt if part == "prefill" else new)
        report[part] = {"tokens_a_second_unsteered": tokens / statistics.median(base)}
        for arm in list(ARMS)[1:]:
            report[part][f"{arm}_median"] = statistics.median(times[arm][part]) / statistics.median(base)
            report[part][f"{arm}_min"] = min(times[arm][part]) / min(base)
            pairs = zip(times[arm][part], base, strict=True)
            report[part][f"{arm}_paired"] = statistics.median(a / b for a, b in pairs)
    return report


def main() -> None:
    parser = build_parser(__doc__, record_path(__file__))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=24)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    torch.manual_seed(0)
    model = build_model(args.width, args.layers, getattr(torch, args.dtype), args.device)
    concepts = [build_random_concept(model, number) for number in range(max(ARMS.values()))]
    warnings.simplefilter("ignore", UserWarning)  # random directions oppose one another
    report: dict[str, Any] = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "runs": [measure_ratios(model, concepts, batch, args.prompt, args.new, args.rounds) for batch in args.batches],
        **provenance(),
    }
    write_record(args.out, report)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
