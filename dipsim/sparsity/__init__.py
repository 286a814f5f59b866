"""What a token reads of the MLP: a policy's formulas, and the masks that they make."""
