"""Flower's PyTorch quickstart on handwritten digits, with compression as a switch."""
