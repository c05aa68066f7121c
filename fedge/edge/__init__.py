"""What runs on a device: the model in ONNX Runtime, and the device's own test of a release."""
