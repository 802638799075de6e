"""Pure mathematics and what every room shares: no configuration objects, no I/O."""
