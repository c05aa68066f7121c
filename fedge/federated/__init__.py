"""One round, seen from the client (``client.py``) and from the server (``server.py``). No Flower here."""
