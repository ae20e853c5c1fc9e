"""DNE: a Gaussian over the embeddings of each class (Li et al., ACM MM 2022)."""
