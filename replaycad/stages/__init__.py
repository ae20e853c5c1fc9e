"""The five stages: pure functions from data, built models and a config to an artifact."""
