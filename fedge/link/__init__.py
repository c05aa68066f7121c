"""The device link: what a device and its gateway say to each other. No sockets, no files, no clock."""
