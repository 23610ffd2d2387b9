"""Helpers that know nothing of steering: tensor dataclasses, files, progress, processes, versions."""
