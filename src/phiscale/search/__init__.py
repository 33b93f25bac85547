"""Searches over networks. What a training gives is an argument, so nothing here knows how to train."""
