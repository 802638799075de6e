"""Training: the algorithm, the loop around it, and the recipe of the embedded model."""
