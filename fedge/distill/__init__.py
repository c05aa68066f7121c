"""Distillation losses, one a file, and the training loop that teacher and student share.

A loss is a module without a leading underscore that offers

    loss(student [n, classes], teacher [n, classes], y [n], temperature, hard_weight) -> scalar tensor
"""
