"""Converts original checkpoints to Hugging Face folders."""
