"""What a trained detector is used for: verdicts, heat maps, exported networks."""
