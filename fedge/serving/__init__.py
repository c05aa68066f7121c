"""Inference over HTTP and across devices."""
