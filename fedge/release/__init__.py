"""Releases: an ONNX model, what a device must know about it, and the signed repository that it lies in.

``manifest`` says what a release is, ``pointer`` where everything lies, ``repository`` how the server
publishes, ``offline`` what is done with the keys that no server holds, ``delta`` and ``package`` how a
release travels.
Who is believed is settled by The Update Framework: ``trust``, ``online``, and the device's updater.
"""
