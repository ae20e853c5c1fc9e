"""UCAD: memory banks of a vision transformer with a learned prompt per class (AAAI 2024)."""
