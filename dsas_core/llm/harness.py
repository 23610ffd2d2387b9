"""Moved to `dsas_core.llm.evaluation.lm_eval_harness`; this name goes in 0.3.0."""

from ..utils.deprecation import forward_to

__getattr__ = forward_to("dsas_core.llm.evaluation.lm_eval_harness", __name__)

if __name__ == "__main__":
    from dsas_core.llm.evaluation.lm_eval_harness import main

    from ..utils.deprecation import warn_moved

    warn_moved("python -m dsas_core.llm.harness", "python -m dsas_core.llm.evaluation.lm_eval_harness", stacklevel=1)
    raise SystemExit(main())
