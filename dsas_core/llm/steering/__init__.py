"""Steering a language model, and the trace by token."""
