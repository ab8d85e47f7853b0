"""What a model does with examples: batches, answers and their scores."""
