"""Helpers that know nothing of steering: dataclasses of tensors, files, templates, progress, processes, versions."""
