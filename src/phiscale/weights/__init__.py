"""Weights on disk: model directories, and loading them into networks."""
