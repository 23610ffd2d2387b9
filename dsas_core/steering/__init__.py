"""What happens while a steered model runs."""
