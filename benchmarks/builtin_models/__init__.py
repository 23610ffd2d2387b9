"""The built-in models: how they are trained, how good they are before any steering, and the concepts that ship."""
