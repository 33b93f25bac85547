"""How good a model is: metrics, and measuring a model directory on images."""
