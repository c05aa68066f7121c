"""Between Flower's messages and fedge's frames. Public Flower API only."""
