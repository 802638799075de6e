"""Finding settings: a study of trials, each a whole run of the configuration with some keys changed."""
