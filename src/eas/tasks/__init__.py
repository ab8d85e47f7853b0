"""The use of examples: batches, answers and their scores."""
