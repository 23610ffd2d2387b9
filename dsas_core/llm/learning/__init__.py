"""Learning a concept of texts."""
