"""A user's own text as documents and prompts: read, cut, asked about by rule, held out, written as a small project."""
