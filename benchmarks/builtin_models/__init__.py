"""How good the built-in models are before any steering, and the concepts that ship with them."""
