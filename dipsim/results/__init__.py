"""What a run found: figures, their price in perplexity, and the folder that they are written to."""
