"""Original checkpoints turned into Hugging Face folders."""
