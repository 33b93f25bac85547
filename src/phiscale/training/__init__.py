"""Training: a network, data and a recipe in, a model directory out. Built on Lightning."""
