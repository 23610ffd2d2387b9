"""What steering and learning cost: time, memory, files."""
