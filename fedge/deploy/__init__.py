"""Processes, sockets and files of a federation that runs on many machines.

``pki`` makes keys and certificates, ``federation`` reads and writes the folders they lie in, ``provision``
and ``doctor`` are the commands of the same names.
"""
