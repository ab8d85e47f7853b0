"""Export: a tuned model as a folder of plain weights that another engine serves; one file and one line an engine."""
