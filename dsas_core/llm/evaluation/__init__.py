"""Measuring a concept of texts."""
