"""Learning a concept of pictures."""
