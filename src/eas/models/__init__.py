"""The parts of Hugging Face models that eas names, and the models that this package defines: LaVIN and METER."""
