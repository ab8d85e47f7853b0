"""The paper's tables, and comparisons of methods: evidence, not a part of a run."""
