"""Evaluation of concepts on pipelines: pictures of every arm, their figures, and grids of concepts."""
