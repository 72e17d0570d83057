"""Recognisers of published checkpoints, one file per format family."""
