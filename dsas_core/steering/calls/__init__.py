"""One call of a model: what steers it, what probes and maps remember, and which call a checkpoint computes again."""
