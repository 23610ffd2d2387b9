"""Steering a pipeline."""
