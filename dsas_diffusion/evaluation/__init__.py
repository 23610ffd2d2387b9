"""Measuring a concept of pictures."""
