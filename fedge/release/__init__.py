"""Releases: a signed, versioned, expiring int8 ONNX model and what a device must know about it.

``manifest`` says what a release is, ``rules`` what makes one acceptable, ``bundle`` how one travels,
``store`` where one lies. How trust in a key is rooted is not settled here: ``rules`` is given the keys.
"""
