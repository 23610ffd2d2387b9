"""Pictures as a user asks for them: tags in prompts, settings in files, and grids of everything that can vary."""
