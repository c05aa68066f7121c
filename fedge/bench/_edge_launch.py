"""``python -I -S _edge_launch.py COMMAND...``: what a command takes: seconds, and its largest memory.

A process of its own between a benchmark and the command: Linux counts what was resident between fork and
exec to the child, and a benchmark is large. The last line on standard output is one JSON object; what the
command itself said stands before it.
"""

import json
import os
import sys
import time

if __name__ == "__main__":
    start = time.perf_counter()
    process = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ)
    _, status, usage = os.wait4(process, 0)
    taken = {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * 1024,
        "exit": os.waitstatus_to_exitcode(status),
    }
    print(json.dumps(taken))  # noqa: T201
