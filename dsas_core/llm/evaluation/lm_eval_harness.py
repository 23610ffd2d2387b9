"""`dsas`, a model of lm-evaluation-harness: any model that its `hf` takes, steered.

```bash
python -m dsas_core.llm.evaluation.lm_eval_harness --model dsas --tasks mmlu \\
    --model_args pretrained=builtin:chat,concept=rudeness,strength=1.0
```

All arguments go to `lm_eval` unchanged. Up to version 0.4.13 lm-eval knows no models but its own, so this file must be
imported first: by this command, or by your program before it calls `lm_eval.simple_evaluate(model="dsas")`. Later
versions look for installed models, and `lm_eval --model dsas` works.

Several concepts are joined by `+`: `concept=rudeness+slang,strength=1+0.5`. `gate=on` is the method without a gate,
`gate=off` or `strength=0` the model itself; `phase=` is as in `steer`. All other arguments are those of lm-eval's `hf`.

Multiple-choice answers are scored in one forward pass, prompt and answer together, so the end of the prompt is unknown.
Such tasks (`loglikelihood`) therefore refuse what depends on it: `phase=prompt` or `generation`, and gates of form
"latch". Do not share lm-eval's `--use_cache` between strengths: its key is the question alone.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...errors import DSASError, UnavailableError, UnsupportedError
from ...model.loading import device_of, source_of
from ...steering.strengths import load_concepts
from ..model.call_describer import PHASES
from ..model.gguf import is_gguf
from ..model.load import BUILTIN, load
from ..steering.steer import steer

try:
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
except ImportError as error:
    raise UnavailableError(
        f"lm-evaluation-harness cannot be imported ({error}): pip install 'dsas-diffusion[lm-eval]'"
    ) from None


class SteeredLM(HFLM):
    """lm-eval's `hf`, steered by concepts.

    Args:
        pretrained: a folder, GGUF file or Hub name, "builtin:chat", or a model (then with `tokenizer`).
        concept: folder or Hub name of a concept, or builtin:NAME; several are joined by "+".
        strength: one number for all concepts, or one each, joined by "+".
        gate: None for each concept's own, "on" or "off".
        phase: "prompt", "generation" or "all".
        force: steer even with a concept that was learned on another architecture.
        device: None takes a GPU if there is one.
        options: of lm-eval's `HFLM`.

    Raises:
        DSASError: no concept, one that cannot be read or does not fit, a strength that is not a number, neither one
            strength nor one per concept, or a model that cannot be loaded.
    """

    def __init__(
        self,
        pretrained: Any = None,
        concept: str | None = None,
        strength: float | str = 1.0,
        gate: str | None = None,
        phase: str = "all",
        force: bool = False,
        device: str | None = None,
        **options: Any,
    ) -> None:
        if pretrained is None:
            raise DSASError(f"which model? Pass pretrained=, a folder, a Hub name, or {', '.join(BUILTIN)}")
        if phase not in PHASES:  # before the model is loaded, which may take minutes
            raise DSASError(f"phase {phase!r}: expected one of {', '.join(PHASES)}")
        strengths = _parse_strengths(concept, strength)
        concepts = load_concepts(strengths)
        if isinstance(pretrained, str) and pretrained.startswith("builtin:"):
            pretrained = str(source_of(pretrained, BUILTIN, "language model"))
            options.setdefault("dtype", "float32")  # it is stored in half precision, which CPUs are slow at
        if isinstance(pretrained, str) and is_gguf(pretrained):
            file, settings = pretrained, {"device": device or "auto", "dtype": options.pop("dtype", "auto")}
            pretrained, options["tokenizer"] = load(file, **settings)
        try:
            super().__init__(pretrained=pretrained, device=device or device_of("auto"), **options)
        except OSError as error:
            raise UnavailableError(f"cannot load {pretrained}: {' '.join(str(error).split())[:300]}") from error
        self.steering = steer(self.model, concepts, gate=gate, phase=phase, force=force)
        latched = gate is None and any(item.by_prompt for item in concepts)
        #: what depends on the end of the prompt
        self._needs = f"phase={phase}" if phase != "all" else "a gate of form latch or last" if latched else None

    def _loglikelihood_tokens(self, requests: Any, *args: Any, **kwargs: Any) -> Any:
        if self._needs is not None and self.backend == "causal":
            raise UnsupportedError(
                f"{self._needs} goes by where the prompt ends, which is unknown when a task scores given answers: "
                "take phase=all and another gate, or tasks that generate"
            )
        return super()._loglikelihood_tokens(requests, *args, **kwargs)


def run_tasks(model: Any, tokenizer: Any, tasks: Sequence[str], limit: int | None = None) -> dict[str, float]:
    """The results of a loaded model in tasks; the caller may be steering it.

    Args:
        model: a causal language model.
        tokenizer: of the model.
        tasks: names that lm-eval knows, or YAML files.
        limit: questions of each task; None asks them all.

    Returns:
        "task, metric" -> value, without standard errors.

    Raises:
        DSASError: a task that lm-eval does not know.
    """
    from lm_eval import simple_evaluate

    manager, names = _find_tasks(tasks)
    results: Any = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8),
        tasks=list(names),
        task_manager=manager,
        apply_chat_template=bool(getattr(tokenizer, "chat_template", None)),
        limit=limit,
        bootstrap_iters=0,
        log_samples=False,
    )
    return {
        f"{task}, {metric.removesuffix(',none')}": float(value)
        for task, line in results["results"].items()
        for metric, value in line.items()
        if isinstance(value, int | float) and "stderr" not in metric and "sample" not in metric
    }


def check_tasks(tasks: Sequence[str]) -> None:
    """Raise a DSASError for a task that lm-eval does not know."""
    _find_tasks(tasks)


def _find_tasks(tasks: Sequence[str]) -> tuple[TaskManager, list[str]]:
    """lm-eval's manager of the tasks, and their names."""
    files = [Path(task) for task in tasks if task.endswith((".yaml", ".yml"))]
    if missing := next((file for file in files if not file.is_file()), None):
        raise DSASError(f"no task file {missing}")
    manager = TaskManager(include_path=[str(file.parent) for file in files], include_defaults=len(files) < len(tasks))
    names = [_task_name(Path(task)) if Path(task) in files else task for task in tasks]
    if unknown := [name for name in names if name not in manager.all_tasks]:
        raise DSASError(f"lm-evaluation-harness knows no task {unknown[0]!r}: give its name, or a YAML file")
    return manager, names


def _task_name(file: Path) -> str:
    """The task or group that a YAML file defines."""
    import yaml

    class Loader(yaml.SafeLoader):
        """A safe loader that ignores lm-eval's tags, such as !function."""

    Loader.add_multi_constructor("!", lambda loader, suffix, node: None)
    try:
        content = Loader(file.read_text()).get_single_data()
    except yaml.YAMLError as error:
        raise DSASError(f"{file} is not YAML: {' '.join(str(error).split())}") from None
    name = content.get("group") or content.get("task") if isinstance(content, dict) else None
    if not isinstance(name, str):
        raise DSASError(f"{file} names no task: expected task: or group: and a name")
    return name


def _parse_strengths(concept: str | None, strength: float | str) -> dict[str, float]:
    """Folder or Hub name of each concept -> its strength."""
    names = [] if not concept else [str(concept)] if Path(str(concept)).is_dir() else str(concept).split("+")
    if not names or not all(names):
        raise DSASError(
            f"concept {concept!r}: expected the folder or Hub name of a concept, or several joined by '+'; for the "
            "model without one take --model hf"
        )
    if duplicates := sorted({name for name in names if names.count(name) > 1}):
        raise DSASError(f"concept {duplicates[0]!r} is given twice: give it one strength")
    try:
        numbers = [float(part) for part in str(strength).split("+")]
    except ValueError:
        raise DSASError(f"strength {strength!r}: expected a number, or one per concept joined by '+'") from None
    numbers *= len(names) if len(numbers) == 1 else 1
    if len(numbers) != len(names):
        raise DSASError(f"{len(numbers)} strengths for {len(names)} concepts: give one for all, or one each")
    return dict(zip(names, numbers, strict=True))


def main() -> int:
    """lm-eval's command line, with `--model dsas`; its exit status."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except DSASError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    # imported by its real name, under which lm-eval may look for it: in a script the class would be another one
    from dsas_core.llm.evaluation.lm_eval_harness import main as run

    sys.exit(run())
else:
    register_model("dsas")(SteeredLM)
