"""The procedural world that the bundled models are pre-trained on, and the demo drawn from it."""
