"""Everything that the deployment takes from inside Flower, in one place (tested with Flower 1.41).

The gateway stands for one Flower node per client (``nodes``), and the supervisor starts runs (``runs``);
Flower's own programs for both are commands, so these speak the same HTTP calls to the unmodified SuperLink
on loopback. ``replies`` is the ServerApp's side of it, ``uploads`` the door's. In which order the calls come,
and what of it is private, is written in ``docs/decisions/flower-below.md``.
"""
