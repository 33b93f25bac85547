"""Training: a network, data and a recipe in, a model directory out. Built on Lightning."""

from phiscale.errors import require

# Every module here stands on Lightning: say how to install it, before an import of theirs fails.
require("lightning", extra="train")
