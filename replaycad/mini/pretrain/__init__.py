"""Pre-training of the bundled models on the procedural world."""
