"""Documents and prompts: generated or read from files, split, checked to be disjoint, and tokenised."""
