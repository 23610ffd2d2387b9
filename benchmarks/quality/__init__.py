"""What steering does, and what it leaves alone; whether two commits behave alike (digests)."""
