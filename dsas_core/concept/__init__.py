"""The artifact: what was learned, its evidence, and how it is written, read and shared."""
