"""Evaluation of concepts on language models: answers, judges of texts, and lm-evaluation-harness."""
