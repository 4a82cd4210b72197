"""Evaluates LogQL: batches of lines through the stages of a pipeline, and windows over what is left."""
