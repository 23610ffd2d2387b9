"""Language models: their layers, loading, prompts in tokens, the description of their calls."""
