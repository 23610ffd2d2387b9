"""What a language model is to us: layers, loading, conversations, the description of its calls."""
