"""Export commands: a trained run in, a versioned SavedModel out."""
