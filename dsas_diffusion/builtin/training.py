"""Train `builtin:emoji` and its judge from nothing: `python -m dsas_diffusion.builtin.training`.

Stages, each resumable and skipped when its result is there: scenes, autoencoder, latents, judge, text warm start,
denoiser, relations, binding, decoder, export. On a CPU two processes of one thread share the work (two OpenMP threads
in one process collapse when anything else runs); on a GPU one process does it.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from . import architecture
from .architecture import PRESETS
from .dataset import Dataset, draw_dataset
from .judge import JudgeNetwork
from .optimise import TrainingRun, optimise, wait
from .scenes import BACKGROUNDS, NAMES, RELATIONS, STYLES

NO_CAPTION_SHARE = 0.1


def _pictures(data: Dataset, rows: np.ndarray, device: torch.device) -> torch.Tensor:
    """Pictures as bfloat16 [n, 3, size, size] in [-1, 1]."""
    batch = torch.from_numpy(data.pictures[np.sort(rows)]).to(device)
    return (batch.permute(0, 3, 1, 2).to(torch.bfloat16) / 127.5 - 1).to(memory_format=torch.channels_last)


def _difference(output: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """L1 on pixels, on their gradients and on 4x4 means, and MSE: sharp edges, right colours."""
    output, wanted = output.float(), wanted.float()
    error = output - wanted
    slopes = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return error.abs().mean() + 0.5 * slopes + F.avg_pool2d(error, 4).abs().mean() + error.pow(2).mean()


def train_autoencoder(run: TrainingRun):
    """Pictures to latents and back."""
    model = architecture.build_autoencoder(run.preset).to(memory_format=torch.channels_last)
    data = run.dataset()

    def loss(rng: np.random.Generator) -> torch.Tensor:
        pictures = _pictures(data, rng.integers(len(data), size=run.share), run.device)
        latents = model.encoder(pictures)
        by_channel = latents.float().transpose(0, 1).flatten(1)
        moments = by_channel.mean(1).pow(2).mean() + (by_channel.std(1) - 1).pow(2).mean()
        noise = torch.from_numpy(rng.standard_normal(latents.shape, np.float32)).to(latents) * 0.05
        return _difference(model.decoder(latents + noise), pictures) + 0.01 * moments

    optimise(run, "autoencoder", model, loss, run.preset.autoencoder_steps, 2e-3)
    return model.to(run.device)


@torch.inference_mode()
def encode_latents(run: TrainingRun, autoencoder: Any) -> np.ndarray:
    """Every picture's latent, float16, scaled to unit deviation; `latents.scale` holds the factor."""
    path = run.folder / "latents.npy"
    data = run.dataset()
    side = run.preset.image_size // 4
    if not (run.folder / "latents.scale").is_file():
        shape = (len(data), run.preset.latent_channels, side, side)
        if run.rank == 0:
            np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape).flush()
        wait(run)
        latents = np.load(path, mmap_mode="r+")
        model = autoencoder.to(torch.bfloat16)
        for rows in np.array_split(np.arange(len(data)), math.ceil(len(data) / 256))[run.rank :: run.world]:
            latents[rows] = model.encoder(_pictures(data, rows, run.device)).float().cpu().numpy()
        latents.flush()
        model.float()
        wait(run)
        if run.rank == 0:
            (run.folder / "latents.scale").write_text(str(1 / float(np.std(latents[:20_000].astype(np.float32)))))
        wait(run)
    return np.load(path, mmap_mode="r")


def train_judge(run: TrainingRun, autoencoder: Any) -> JudgeNetwork:
    """Things and styles per pixel, on renders and on autoencoded renders."""
    model = JudgeNetwork()
    data = run.dataset()
    latents = np.load(run.folder / "latents.npy", mmap_mode="r")
    decoder = autoencoder.decoder.to(torch.bfloat16)

    def loss(rng: np.random.Generator) -> torch.Tensor:
        rows = np.sort(rng.integers(len(data), size=run.share))
        pictures = _pictures(data, rows, run.device).contiguous()
        coded = slice(0, run.share // 4)
        with torch.no_grad():
            pictures[coded] = decoder(torch.from_numpy(latents[rows[coded]]).to(pictures))
            pictures += 0.03 * torch.from_numpy(rng.standard_normal(pictures.shape, np.float32)).to(pictures)
        labels = torch.from_numpy(data.labels[rows, 1::2, 1::2]).to(run.device).long()
        things, styles = model(pictures)
        thing, style = labels[..., 0], labels[..., 1]
        weight = torch.ones(1 + len(NAMES), device=run.device)
        weight[0] = 0.4
        loss_of_things = F.cross_entropy(things.float(), thing, weight)
        loss_of_styles = F.cross_entropy(styles.float().movedim(1, -1)[thing > 0], style[thing > 0])
        return loss_of_things + 0.5 * loss_of_styles

    optimise(run, "judge", model, loss, run.preset.judge_steps, 2e-3, ema_decay=0.995)
    autoencoder.float()
    return model


def _tokens(run: TrainingRun, tokenizer, captions: list[str]) -> torch.Tensor:
    padded = tokenizer(captions, padding="max_length", max_length=architecture.TEXT_POSITIONS, truncation=True)
    return torch.tensor(padded.input_ids, device=run.device)


def warm_text_encoder(run: TrainingRun, tokenizer):
    """A start for the text encoder: tell from its end state what the caption says."""
    model = architecture.build_text_encoder(run.preset, tokenizer)
    data = run.dataset()
    sizes = (len(NAMES) * len(STYLES), len(BACKGROUNDS), 1 + len(NAMES), 1 + len(NAMES), 1 + len(RELATIONS))
    head = nn.Linear(run.preset.text_width, sum(sizes))
    both = nn.ModuleDict({"text_encoder": model, "head": head})
    relations = [None, *RELATIONS]

    def loss(rng: np.random.Generator) -> torch.Tensor:
        facts = [data.facts[row] for row in rng.integers(len(data), size=run.share)]
        tokens = _tokens(run, tokenizer, [fact["caption"] for fact in facts])
        ends = (tokens == tokenizer.eos_token_id).int().argmax(1)
        states = model(tokens).last_hidden_state[torch.arange(len(facts)), ends]
        logits, *choices = head(states).float().split(sizes, 1)
        present = torch.zeros_like(logits)
        order = torch.zeros(2, len(facts), dtype=torch.long)
        for i, fact in enumerate(facts):
            for k, (thing, style) in enumerate(fact["items"]):
                present[i, NAMES.index(thing) * len(STYLES) + STYLES.index(style)] = 1
                order[k, i] = 1 + NAMES.index(thing)
        backgrounds = torch.tensor([BACKGROUNDS.index(fact["background"]) for fact in facts])
        related = torch.tensor([relations.index(fact["relation"]) for fact in facts])
        answers = [answer.to(run.device) for answer in (backgrounds, *order, related)]
        others = sum(F.cross_entropy(choice, answer) for choice, answer in zip(choices, answers, strict=True))
        return 10 * F.binary_cross_entropy_with_logits(logits, present) + others

    optimise(run, "text", both, loss, run.preset.text_steps, 2e-3, ema_decay=0.99)
    return model


class Flow:
    """UNet and text encoder in training: predict noise minus data from their mixture and a caption (flow matching)."""

    def __init__(self, run: TrainingRun, tokenizer, text_encoder, latents: np.ndarray) -> None:
        from diffusers.models.attention_processor import AttnProcessor

        self.run, self.text_encoder, self.latents = run, text_encoder, latents
        self.unet = architecture.build_unet(run.preset)
        if run.device.type == "cpu":
            self.unet.set_attn_processor(AttnProcessor())  # plain products train faster than the fused kernel on a CPU
        self.data = run.dataset()
        self.scale = float((run.folder / "latents.scale").read_text())
        self.tokens = _tokens(run, tokenizer, self.data.captions)
        self.silence = _tokens(run, tokenizer, [""])
        self.end = tokenizer.eos_token_id

    def loss(self, rng: np.random.Generator, rows: np.ndarray, sigma: np.ndarray) -> tuple[torch.Tensor, ...]:
        """The loss at noise shares `sigma` [n] of pictures `rows` [n], and the states of their captions' tokens."""
        clean = torch.from_numpy(self.latents[rows]).to(self.run.device).float() * self.scale
        noise = torch.from_numpy(rng.standard_normal(clean.shape, np.float32)).to(clean)
        sigmas = torch.from_numpy(sigma).to(clean)
        mixed = clean.lerp(noise, sigmas[:, None, None, None])
        dropped = torch.from_numpy(rng.random(len(rows)) < NO_CAPTION_SHARE).to(self.run.device)
        tokens = self.tokens[torch.from_numpy(rows).to(self.run.device)]
        states = self.text_encoder(tokens).last_hidden_state
        silence = self.text_encoder(self.silence).last_hidden_state
        conditioning = torch.where(dropped[:, None, None], silence, states)
        flow = self.unet(mixed.to(torch.bfloat16), 1000 * sigmas, conditioning).sample
        return F.mse_loss(flow.float(), noise - clean), states


def _noise_shares(rng: np.random.Generator, count: int) -> np.ndarray:
    """Shares of noise, most of them in the middle, where things take shape."""
    bell = 1 / (1 + np.exp(-rng.normal(0.2, 1, count)))
    return np.where(rng.random(count) < 0.8, bell, rng.random(count))


def train_denoiser(flow: Flow) -> None:
    """UNet and text encoder together, on all scenes."""
    run = flow.run

    def loss(rng: np.random.Generator) -> torch.Tensor:
        rows = np.sort(rng.integers(len(flow.data), size=run.share))
        return flow.loss(rng, rows, _noise_shares(rng, run.share))[0]

    both = nn.ModuleDict({"unet": flow.unet, "text_encoder": flow.text_encoder})
    optimise(run, "denoiser", both, loss, run.preset.unet_steps, 1.2e-3)


def train_relations(flow: Flow) -> None:
    """Which of two things is on the left, or above: without this stage the model gets the axis and guesses the order.

    Two things decide it. The order is settled at noise above 0.85, which the stage before seldom sees. And the text
    encoder is causal, so only tokens after the second noun can know the order: a head asks the end tokens for it, those
    at even positions for the thing on the left or above, those at odd positions for the other, which lets each half
    of the picture attend to its own.
    """
    run, data = flow.run, flow.data
    firsts = ("to the left of", "above")
    stands = torch.zeros(len(data), 2, dtype=torch.long)
    for row, fact in enumerate(data.facts):
        if fact["relation"]:
            pair = [1 + NAMES.index(thing) for thing, _ in fact["items"]]
            stands[row] = torch.tensor(pair if fact["relation"] in firsts else pair[::-1])
    stands = stands.to(run.device)
    related = stands[:, 0].nonzero()[:, 0].cpu().numpy()
    ends = (flow.tokens == flow.end).int().argmax(1).cpu().numpy()
    head = nn.Linear(run.preset.text_width, 1 + len(NAMES))

    def loss(rng: np.random.Generator) -> torch.Tensor:
        count = run.share
        rows = np.where(rng.random(count) < 0.7, rng.choice(related, count), rng.integers(len(data), size=count))
        sigma = np.where(rng.random(count) < 0.5, rng.uniform(0.85, 1, count), _noise_shares(rng, count))
        value, states = flow.loss(rng, rows, sigma)
        here = torch.arange(count, device=run.device)
        position = torch.from_numpy(rng.integers(ends[rows], architecture.TEXT_POSITIONS)).to(run.device)
        wanted = stands[torch.from_numpy(rows).to(run.device), position % 2]
        logits = head(states[here, position]).float()
        return value + 0.05 * F.cross_entropy(logits[wanted > 0], wanted[wanted > 0])

    three = nn.ModuleDict({"unet": flow.unet, "text_encoder": flow.text_encoder, "head": head})
    optimise(run, "relations", three, loss, run.preset.relation_steps, 6e-4)


def train_binding(flow: Flow) -> None:
    """Which of two things wears the style: mostly pairs of different styles, at the noise where things take shape."""
    run, data = flow.run, flow.data
    unlike = np.array([row for row, fact in enumerate(data.facts) if len({style for _, style in fact["items"]}) > 1])

    def loss(rng: np.random.Generator) -> torch.Tensor:
        count = run.share
        rows = np.where(rng.random(count) < 0.6, rng.choice(unlike, count), rng.integers(len(data), size=count))
        return flow.loss(rng, rows, _noise_shares(rng, count))[0]

    both = nn.ModuleDict({"unet": flow.unet, "text_encoder": flow.text_encoder})
    optimise(run, "binding", both, loss, run.preset.binding_steps, 4e-4)


def tune_decoder(run: TrainingRun, autoencoder: Any, latents: np.ndarray) -> None:
    """Crisper edges: the decoder alone, on fixed latents with the small errors that a denoiser leaves."""
    decoder = autoencoder.decoder
    data = run.dataset()

    def loss(rng: np.random.Generator) -> torch.Tensor:
        rows = np.sort(rng.integers(len(data), size=run.share))
        codes = torch.from_numpy(latents[rows].astype(np.float32))
        codes += 0.08 * torch.from_numpy(rng.standard_normal(codes.shape, np.float32))
        return _difference(decoder(codes.to(run.device, torch.bfloat16)), _pictures(data, rows, run.device))

    optimise(run, "decoder", decoder, loss, run.preset.decoder_steps, 8e-4)


def export(run: TrainingRun, autoencoder, text_encoder, tokenizer, unet, judge: JudgeNetwork, out: Path) -> None:
    """Write the pipeline (`model/`) and the judge (`judge/`) in float16."""
    scale = float((run.folder / "latents.scale").read_text())
    autoencoder.register_to_config(scaling_factor=scale)
    pipeline = architecture.build_pipeline(autoencoder.cpu(), text_encoder.cpu(), tokenizer, unet.cpu())
    pipeline.to(torch.float16).save_pretrained(out / "model")
    _name_for_all_versions(out / "model" / "text_encoder" / "model.safetensors")
    for name in ("vocab.json", "merges.txt"):  # transformers 4 reads these, transformers 5 its tokenizer.json
        shutil.copy(run.folder / f"tokenizer-{run.rank}" / name, out / "model" / "tokenizer")
    (out / "judge").mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.half().contiguous() for name, tensor in judge.cpu().state_dict().items()}
    save_file(weights, out / "judge" / "judge.safetensors")


def _work(rank: int, preset: str, folder: Path, seed: int, world: int, out: Path) -> None:
    device = torch.device("cuda", rank) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cpu":
        torch.set_num_threads(1)
    if world > 1:
        rendezvous = f"file://{(folder / 'rendezvous').absolute()}"
        dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world)
    run = TrainingRun(PRESETS[preset], folder, seed, rank, world, device)
    torch.manual_seed(seed)
    tokenizer = architecture.build_tokenizer(folder / f"tokenizer-{rank}")
    autoencoder = train_autoencoder(run)
    latents = encode_latents(run, autoencoder)
    judge = train_judge(run, autoencoder)
    text_encoder = warm_text_encoder(run, tokenizer)
    flow = Flow(run, tokenizer, text_encoder, latents)
    train_denoiser(flow)
    train_relations(flow)
    train_binding(flow)
    tune_decoder(run, autoencoder, latents)
    if rank == 0:
        export(run, autoencoder, text_encoder, tokenizer, flow.unet, judge, out)
    if world > 1:
        dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    gpu = torch.cuda.is_available()
    parser.add_argument("--preset", choices=PRESETS, default="gpu" if gpu else "cpu")
    parser.add_argument("--folder", type=Path, default=Path("outputs/builtin"), help="scenes, checkpoints, results")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="where model/ and judge/ are written")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1 if gpu else min(2, os.cpu_count() or 1))
    args = parser.parse_args()
    preset = PRESETS[args.preset]
    draw_dataset(args.folder / "scenes", preset.scenes, preset.image_size, args.seed, os.cpu_count() or 1)
    (args.folder / "rendezvous").unlink(missing_ok=True)
    job = (args.preset, args.folder, args.seed, args.workers, args.out)
    if args.workers == 1:
        _work(0, *job)
    else:
        torch.multiprocessing.spawn(_work, job, args.workers)


def _name_for_all_versions(path: Path) -> None:
    """Text encoder weights under the names that every transformers reads; from 5.6 on it writes shorter ones."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        weights = {f"text_model.{name.removeprefix('text_model.')}": file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(weights, path, metadata=metadata)


if __name__ == "__main__":
    main()
