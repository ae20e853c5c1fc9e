"""IUF: UniAD that is told which object it sees, learned step by step (Tang et al., ECCV 2024)."""
