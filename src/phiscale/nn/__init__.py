"""From specs to torch: layers, blocks, the network."""
