"""The files between the stages: safetensors with one declared schema each, held as numpy arrays."""
