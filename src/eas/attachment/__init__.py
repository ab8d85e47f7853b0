"""The life of an attached model: attach, save, load, fold for good, decode fast."""
