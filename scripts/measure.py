#!/usr/bin/env python3
"""Run a command and write how long it took and its peak memory. Usage: measure.py RESULT.json COMMAND [ARGUMENT ...]"""

import json
import resource
import signal
import subprocess
import sys
import time


def main(arguments):
    result, *command = arguments
    start = time.monotonic()
    status = subprocess.run(command).returncode
    kibibytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    if status == 0:
        with open(result, "w") as file:
            json.dump({"seconds": time.monotonic() - start, "peak_bytes": kibibytes * 1024}, file)
    return status


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # which ends the command
    sys.exit(main(sys.argv[1:]))
