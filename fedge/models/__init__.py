"""Teachers and students: what is computed, without saying how it is trained, pruned or quantized."""
