"""The work behind the demo, without Gradio."""
