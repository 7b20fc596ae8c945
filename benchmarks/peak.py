"""`python peak.py COMMAND...` runs a command and prints its seconds and peak resident memory in MiB, as JSON.

A small process of its own, since a child counts the memory of whoever started it until its own program begins.
"""

import json
import resource
import subprocess
import sys
import time

start = time.perf_counter()
subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True)
seconds = time.perf_counter() - start
unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit / 2**20
print(json.dumps({"seconds": seconds, "peak": peak}))
