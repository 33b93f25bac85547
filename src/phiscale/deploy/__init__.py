"""Using a model: runtimes, and the predictor over them."""
