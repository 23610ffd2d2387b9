"""What a concept does to pictures of held-out prompts: its effect, and what it leaves as it is."""
