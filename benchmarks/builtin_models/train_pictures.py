"""Train `builtin:emoji` and its judge from scratch: `python -m benchmarks.builtin_models.train_pictures`.

Stages, each resumable and skipped where its result exists: scenes, autoencoder, latents, judge, text warm start,
denoiser, relations, binding, decoder, export. On a CPU two processes of one thread share the work (two OpenMP threads
in one process slow down when anything else runs); on a GPU there is one process.
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

from dsas_diffusion.builtin.judge import JudgeNetwork
from dsas_diffusion.builtin.scenes import BACKGROUNDS, NAMES, RELATIONS, STYLES
from dsas_diffusion.pipelines.load import BUILTIN

from . import picture_architecture as architecture
from .dataset import Dataset, draw_dataset
from .optimise import TrainingRun, optimise, wait
from .picture_architecture import PRESETS

NO_CAPTION_SHARE = 0.1


def _load_pictures(data: Dataset, rows: np.ndarray, device: torch.device) -> torch.Tensor:
    """Pictures as bfloat16 [n, 3, size, size] in [-1, 1]."""
    batch = torch.from_numpy(data.pictures[np.sort(rows)]).to(device)
    return (batch.permute(0, 3, 1, 2).to(torch.bfloat16) / 127.5 - 1).to(memory_format=torch.channels_last)


def _pixel_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L1 on pixels, on their spatial gradients and on 4x4 means, plus MSE: sharp edges, right colours."""
    error = output.float() - target.float()
    slopes = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return error.abs().mean() + 0.5 * slopes + F.avg_pool2d(error, 4).abs().mean() + error.pow(2).mean()


def train_autoencoder(run: TrainingRun):
    """Train the autoencoder of pictures."""
    model = architecture.build_autoencoder(run.preset).to(memory_format=torch.channels_last)
    data = run.dataset()

    def loss(rng: np.random.Generator) -> torch.Tensor:
        pictures = _load_pictures(data, rng.integers(len(data), size=run.share), run.device)
        latents = model.encoder(pictures)
        by_channel = latents.float().transpose(0, 1).flatten(1)
        moments = by_channel.mean(1).pow(2).mean() + (by_channel.std(1) - 1).pow(2).mean()
        noise = torch.from_numpy(rng.standard_normal(latents.shape, np.float32)).to(latents) * 0.05
        return _pixel_loss(model.decoder(latents + noise), pictures) + 0.01 * moments

    optimise(run, "autoencoder", model, loss, run.preset.autoencoder_steps, 2e-3)
    return model.to(run.device)


@torch.inference_mode()
def encode_latents(run: TrainingRun, autoencoder: Any) -> np.ndarray:
    """Latents of all pictures, float16; `latents.scale` holds the factor that makes their deviation 1."""
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
            latents[rows] = model.encoder(_load_pictures(data, rows, run.device)).float().cpu().numpy()
        latents.flush()
        model.float()
        wait(run)
        if run.rank == 0:
            (run.folder / "latents.scale").write_text(str(1 / float(np.std(latents[:20_000].astype(np.float32)))))
        wait(run)
    return np.load(path, mmap_mode="r")


def train_judge(run: TrainingRun, autoencoder: Any) -> JudgeNetwork:
    """Train the judge: things and styles per pixel, on renders and on autoencoded renders."""
    model = JudgeNetwork()
    data = run.dataset()
    latents = np.load(run.folder / "latents.npy", mmap_mode="r")
    decoder = autoencoder.decoder.to(torch.bfloat16)

    def loss(rng: np.random.Generator) -> torch.Tensor:
        rows = np.sort(rng.integers(len(data), size=run.share))
        pictures = _load_pictures(data, rows, run.device).contiguous()
        autoencoded = slice(0, run.share // 4)
        with torch.no_grad():
            pictures[autoencoded] = decoder(torch.from_numpy(latents[rows[autoencoded]]).to(pictures))
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


def _tokenize(run: TrainingRun, tokenizer, captions: list[str]) -> torch.Tensor:
    padded = tokenizer(captions, padding="max_length", max_length=architecture.TEXT_POSITIONS, truncation=True)
    return torch.tensor(padded.input_ids, device=run.device)


def warm_text_encoder(run: TrainingRun, tokenizer):
    """Pretrain the text encoder: a linear head predicts the content of a caption from its end token."""
    model = architecture.build_text_encoder(run.preset, tokenizer)
    data = run.dataset()
    sizes = (len(NAMES) * len(STYLES), len(BACKGROUNDS), 1 + len(NAMES), 1 + len(NAMES), 1 + len(RELATIONS))
    head = nn.Linear(run.preset.text_width, sum(sizes))
    both = nn.ModuleDict({"text_encoder": model, "head": head})
    relations = [None, *RELATIONS]

    def loss(rng: np.random.Generator) -> torch.Tensor:
        facts = [data.facts[row] for row in rng.integers(len(data), size=run.share)]
        tokens = _tokenize(run, tokenizer, [fact["caption"] for fact in facts])
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
    """UNet and text encoder in training by flow matching: predict noise minus data from their mixture and a caption.

    Args:
        run: the training run.
        tokenizer: tokenizer of the text encoder.
        text_encoder: trained together with the UNet.
        latents: of all scenes, float16 [n, channels, height, width].
    """

    def __init__(self, run: TrainingRun, tokenizer, text_encoder, latents: np.ndarray) -> None:
        from diffusers.models.attention_processor import AttnProcessor

        self.run, self.text_encoder, self.latents = run, text_encoder, latents
        self.unet = architecture.build_unet(run.preset)
        if run.device.type == "cpu":
            self.unet.set_attn_processor(AttnProcessor())  # faster than the fused kernel on a CPU
        self.data = run.dataset()
        self.scale = float((run.folder / "latents.scale").read_text())
        self.tokens = _tokenize(run, tokenizer, self.data.captions)
        self.empty = _tokenize(run, tokenizer, [""])
        self.end = tokenizer.eos_token_id

    def loss(self, rng: np.random.Generator, rows: np.ndarray, sigma: np.ndarray) -> tuple[torch.Tensor, ...]:
        """Loss of scenes at given shares of noise; one caption in ten is replaced by the empty one.

        Args:
            rng: generator of the noise.
            rows: indices of the scenes, [n].
            sigma: shares of noise, [n].

        Returns:
            The loss, and the hidden states of the captions, [n, TEXT_POSITIONS, text_width].
        """
        clean = torch.from_numpy(self.latents[rows]).to(self.run.device).float() * self.scale
        noise = torch.from_numpy(rng.standard_normal(clean.shape, np.float32)).to(clean)
        sigmas = torch.from_numpy(sigma).to(clean)
        mixed = clean.lerp(noise, sigmas[:, None, None, None])
        dropped = torch.from_numpy(rng.random(len(rows)) < NO_CAPTION_SHARE).to(self.run.device)
        tokens = self.tokens[torch.from_numpy(rows).to(self.run.device)]
        states = self.text_encoder(tokens).last_hidden_state
        unconditional = self.text_encoder(self.empty).last_hidden_state
        conditioning = torch.where(dropped[:, None, None], unconditional, states)
        predicted = self.unet(mixed.to(torch.bfloat16), 1000 * sigmas, conditioning).sample
        return F.mse_loss(predicted.float(), noise - clean), states


def _noise_shares(rng: np.random.Generator, count: int) -> np.ndarray:
    """Shares of noise, most of them in the middle, where objects form."""
    bell = 1 / (1 + np.exp(-rng.normal(0.2, 1, count)))
    return np.where(rng.random(count) < 0.8, bell, rng.random(count))


def train_denoiser(flow: Flow) -> None:
    """Train UNet and text encoder together, on all scenes."""
    run = flow.run

    def loss(rng: np.random.Generator) -> torch.Tensor:
        rows = np.sort(rng.integers(len(flow.data), size=run.share))
        return flow.loss(rng, rows, _noise_shares(rng, run.share))[0]

    both = nn.ModuleDict({"unet": flow.unet, "text_encoder": flow.text_encoder})
    optimise(run, "denoiser", both, loss, run.preset.unet_steps, 1.2e-3)


def train_relations(flow: Flow) -> None:
    """Train which of two things is on the left, or above: without this stage the model learns the axis, not the order.

    The order is decided at noise above 0.85, which the stage before seldom samples. And the text encoder is causal, so
    only tokens after the second noun can encode the order: an auxiliary head predicts it from the end tokens, at even
    positions the thing on the left or above, at odd positions the other one, so that each half of the picture can
    attend to its own thing.
    """
    run, data = flow.run, flow.data
    firsts = ("to the left of", "above")
    things_by_side = torch.zeros(len(data), 2, dtype=torch.long)
    for row, fact in enumerate(data.facts):
        if fact["relation"]:
            pair = [1 + NAMES.index(thing) for thing, _ in fact["items"]]
            things_by_side[row] = torch.tensor(pair if fact["relation"] in firsts else pair[::-1])
    things_by_side = things_by_side.to(run.device)
    related = things_by_side[:, 0].nonzero()[:, 0].cpu().numpy()
    ends = (flow.tokens == flow.end).int().argmax(1).cpu().numpy()
    head = nn.Linear(run.preset.text_width, 1 + len(NAMES))

    def loss(rng: np.random.Generator) -> torch.Tensor:
        count = run.share
        rows = np.where(rng.random(count) < 0.7, rng.choice(related, count), rng.integers(len(data), size=count))
        sigma = np.where(rng.random(count) < 0.5, rng.uniform(0.85, 1, count), _noise_shares(rng, count))
        value, states = flow.loss(rng, rows, sigma)
        here = torch.arange(count, device=run.device)
        position = torch.from_numpy(rng.integers(ends[rows], architecture.TEXT_POSITIONS)).to(run.device)
        wanted = things_by_side[torch.from_numpy(rows).to(run.device), position % 2]
        logits = head(states[here, position]).float()
        return value + 0.05 * F.cross_entropy(logits[wanted > 0], wanted[wanted > 0])

    three = nn.ModuleDict({"unet": flow.unet, "text_encoder": flow.text_encoder, "head": head})
    optimise(run, "relations", three, loss, run.preset.relation_steps, 6e-4)


def train_binding(flow: Flow) -> None:
    """Train which of two things has the style: mostly on pairs of different styles."""
    run, data = flow.run, flow.data
    mixed = np.array([row for row, fact in enumerate(data.facts) if len({style for _, style in fact["items"]}) > 1])

    def loss(rng: np.random.Generator) -> torch.Tensor:
        count = run.share
        rows = np.where(rng.random(count) < 0.6, rng.choice(mixed, count), rng.integers(len(data), size=count))
        return flow.loss(rng, rows, _noise_shares(rng, count))[0]

    both = nn.ModuleDict({"unet": flow.unet, "text_encoder": flow.text_encoder})
    optimise(run, "binding", both, loss, run.preset.binding_steps, 4e-4)


def tune_decoder(run: TrainingRun, autoencoder: Any, latents: np.ndarray) -> None:
    """Train the decoder alone, for sharper edges, on latents with noise as small as the denoiser's errors."""
    decoder = autoencoder.decoder
    data = run.dataset()

    def loss(rng: np.random.Generator) -> torch.Tensor:
        rows = np.sort(rng.integers(len(data), size=run.share))
        codes = torch.from_numpy(latents[rows].astype(np.float32))
        codes += 0.08 * torch.from_numpy(rng.standard_normal(codes.shape, np.float32))
        return _pixel_loss(decoder(codes.to(run.device, torch.bfloat16)), _load_pictures(data, rows, run.device))

    optimise(run, "decoder", decoder, loss, run.preset.decoder_steps, 8e-4)


def export(run: TrainingRun, autoencoder, text_encoder, tokenizer, unet, judge: JudgeNetwork, out: Path) -> None:
    """Write the pipeline (`model/`) and the judge (`judge/`) in float16."""
    scale = float((run.folder / "latents.scale").read_text())
    autoencoder.register_to_config(scaling_factor=scale)
    pipeline = architecture.build_pipeline(autoencoder.cpu(), text_encoder.cpu(), tokenizer, unet.cpu())
    pipeline.to(torch.float16).save_pretrained(out / "model")
    _rename_for_all_versions(out / "model" / "text_encoder" / "model.safetensors")
    for name in ("vocab.json", "merges.txt"):  # transformers 4 reads these, transformers 5 its tokenizer.json
        shutil.copy(run.folder / f"tokenizer-{run.rank}" / name, out / "model" / "tokenizer")
    (out / "judge").mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.half().contiguous() for name, tensor in judge.cpu().state_dict().items()}
    save_file(weights, out / "judge" / "judge.safetensors")


def _train(rank: int, preset: str, folder: Path, seed: int, world: int, out: Path) -> None:
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
    parser.add_argument(
        "--out", type=Path, default=BUILTIN["builtin:emoji"].parent, help="where model/ and judge/ are written"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1 if gpu else min(2, os.cpu_count() or 1))
    args = parser.parse_args()
    preset = PRESETS[args.preset]
    draw_dataset(args.folder / "scenes", preset.scenes, preset.image_size, args.seed, os.cpu_count() or 1)
    (args.folder / "rendezvous").unlink(missing_ok=True)
    job = (args.preset, args.folder, args.seed, args.workers, args.out)
    if args.workers == 1:
        _train(0, *job)
    else:
        torch.multiprocessing.spawn(_train, job, args.workers)


def _rename_for_all_versions(path: Path) -> None:
    """Text encoder weights under the names that every transformers reads; from 5.6 on it writes shorter ones."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        weights = {f"text_model.{name.removeprefix('text_model.')}": file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(weights, path, metadata=metadata)


if __name__ == "__main__":
    main()
