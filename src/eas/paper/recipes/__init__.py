"""The printed figures of the paper's tables, and a recipe for each of their rows; see docs/reproduce.md."""
