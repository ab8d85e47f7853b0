"""What the tables of the paper print, and a run for each of their rows; see docs/reproduce.md."""
