"""Making a student small: pruning by sensitivity, quantization, export to int8 ONNX."""
