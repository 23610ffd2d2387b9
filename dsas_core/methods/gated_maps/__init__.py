"""Methods that bring a map and a gate of their own."""
