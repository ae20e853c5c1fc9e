"""What a detector remembers of earlier classes, besides replays."""
