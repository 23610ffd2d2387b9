"""Features and CLIP scores by models of transformers: what their own forward gives, and what is no model."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.builtin_models.picture_architecture import TEXT_POSITIONS
from dsas_core import DSASError
from dsas_core.errors import UnavailableError
from dsas_diffusion.vision import image_models
from dsas_diffusion.vision.image_models import Clip
from dsas_diffusion.vision.similarity import clip_score, transformers_features
from tests.fixtures.vision_models import noise_pictures, projected, save_clip, save_processor, save_resnet, save_vit

PROMPTS = ["a dog on the grass", "a blurred banana", "a cat and a hat at night"]


@pytest.fixture(scope="module")
def clip_parts(clip_folder: Path) -> tuple[Any, Any]:
    from transformers import AutoProcessor, CLIPModel

    return CLIPModel.from_pretrained(clip_folder).eval(), AutoProcessor.from_pretrained(clip_folder)


# ---- features --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("save", "kind", "expected"),
    [
        (save_vit, "vit", lambda output: output.pooler_output),
        # a classifier's checkpoint has no pooler: what transformers then makes up at random must not be read
        (save_vit, "vit classifier", lambda output: output.last_hidden_state.mean(1)),
        (save_resnet, "resnet", lambda output: output.last_hidden_state.mean((2, 3))),
        (lambda folder, kind: save_clip(folder)[0], "clip", None),
    ],
    ids=["pooled", "mean", "convolution", "clip"],
)
def test_features_of_transformers(save: Any, kind: str, expected: Any, tmp_path: Path) -> None:
    model = save(tmp_path, kind)
    pictures = noise_pictures(3)
    pixels = save_processor(tmp_path)(images=pictures, return_tensors="pt")["pixel_values"]
    if kind == "clip":  # keep the tokenizer's processor out of it: features need none
        (tmp_path / "processor_config.json").unlink(missing_ok=True)  # transformers 4 writes none
        save_processor(tmp_path)
    with torch.no_grad():
        wanted = expected(model(pixel_values=pixels)) if expected else projected(model, pixels)
    result = transformers_features(tmp_path, device="cpu")(pictures)
    assert result.shape == tuple(wanted.shape)
    assert result == pytest.approx(wanted.numpy(), rel=1e-4, abs=1e-5)


# ---- CLIP ------------------------------------------------------------------------------------------------------------


def direct_scores(model: Any, processor: Any, pictures: list[Image.Image], prompts: list[str]) -> np.ndarray:
    """100 · max(cos, 0) from the vectors that CLIP's own forward gives."""
    inputs = processor(text=prompts, images=pictures, return_tensors="pt", padding=True)
    with torch.no_grad():
        output = model(**inputs)
    cosines = torch.nn.functional.cosine_similarity(output.image_embeds, output.text_embeds)
    return (100 * cosines.clamp(min=0)).numpy()


def test_clip_score_is_the_cosine_of_transformers(
    clip_folder: Path, clip_parts: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, prompts = noise_pictures(6), [*PROMPTS, *PROMPTS[::-1]]
    expected = direct_scores(*clip_parts, pictures, prompts)
    assert (expected == 0).any()  # both sides of the clamp
    assert (expected > 1).any()
    assert clip_score(pictures, prompts, clip_folder) == pytest.approx(expected, rel=1e-3, abs=1e-3)
    monkeypatch.setattr(image_models, "BATCH", 2)
    assert clip_score(pictures, prompts, Clip(clip_folder)) == pytest.approx(expected, rel=1e-3, abs=1e-3)
    assert clip_score([], [], clip_folder).shape == (0,)


def test_clip_score_is_that_of_torchmetrics(clip_folder: Path, clip_parts: tuple[Any, Any]) -> None:
    from torchmetrics.multimodal import CLIPScore

    model, processor = clip_parts
    bare = SimpleNamespace(  # torchmetrics expects vectors, where transformers 5 gives output objects
        config=model.config,
        to=lambda device: bare,
        get_image_features=lambda pixels: projected(model, pixels),
        get_text_features=lambda ids, mask: model.text_projection(model.text_model(ids, mask).pooler_output),
    )
    metric = CLIPScore(model_name_or_path=lambda: (bare, processor))
    for picture, prompt in zip(noise_pictures(3), PROMPTS, strict=True):
        with torch.no_grad():
            expected = metric(torch.from_numpy(np.array(picture)).permute(2, 0, 1), prompt)
        assert clip_score([picture], [prompt], clip_folder) == pytest.approx([float(expected)], rel=1e-3, abs=1e-3)


def test_prompts_that_are_too_long_are_cut(clip_folder: Path) -> None:
    clip = Clip(clip_folder)
    words = "dog " * (TEXT_POSITIONS - 2)
    short, long, other = clip.of_texts([words, words + "cat " * 50, words.replace("dog", "cat", 1)])
    assert torch.allclose(short, long, atol=1e-5)
    assert not torch.allclose(short, other, atol=1e-2)


def test_clip_score_needs_a_prompt_for_each_picture(clip_folder: Path) -> None:
    with pytest.raises(DSASError, match="3 pictures, but 1 prompts"):
        clip_score(noise_pictures(3), ["a dog"], clip_folder)


# ---- models that are not to be had -----------------------------------------------------------------------------------


@pytest.mark.parametrize("use", [Clip, transformers_features])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "no model is named"),
        ("./nowhere", "no such folder"),
        ("empty", r"has no config\.json"),
        ("pickled", "cannot load .*safetensors"),
        ("torn", "cannot load"),
    ],
)
def test_models_that_cannot_be_loaded(
    use: Any, name: str, message: str, clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for kind in ("pickled", "torn"):
        shutil.copytree(clip_folder, tmp_path / kind)
    (tmp_path / "pickled" / "model.safetensors").unlink()
    torch.save({}, tmp_path / "pickled" / "pytorch_model.bin")
    (tmp_path / "torn" / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(UnavailableError, match=message) as caught:
        use(name)
    assert "\n" not in str(caught.value)


def test_the_hub_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModel

    def fails(name: str, **options: Any) -> None:
        raise OSError("We couldn't connect to 'https://huggingface.co'\nto load the files")

    monkeypatch.setattr(AutoModel, "from_pretrained", fails)
    with pytest.raises(
        UnavailableError, match=r"cannot load someone/clip: We couldn't connect to .* to load the files"
    ):
        clip_score(noise_pictures(1), ["a dog"], "someone/clip")


def test_what_is_no_clip(tmp_path: Path) -> None:
    save_vit(tmp_path, "vit")
    save_processor(tmp_path)
    with pytest.raises(UnavailableError, match="is no CLIP"):
        Clip(tmp_path)


def test_weights_that_are_missing(clip_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(clip_folder, tmp_path / "clip")
    weights = load_file(folder / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for use in (Clip, transformers_features):
        with pytest.raises(UnavailableError, match=r"it lacks visual_projection\.weight, which would be random"):
            use(folder)
