"""The continual protocol: strategies, their steps, and what they come to."""
