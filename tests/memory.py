"""What a process has needed at most, as code for processes that tests start."""

from __future__ import annotations

PEAK = """
def peak():
    \"\"\"MiB that this process has needed at most; getrusage's would begin with those of the one that started it.\"\"\"
    with open("/proc/self/status") as file:
        return int(file.read().partition("VmHWM:")[2].split()[0]) // 1024
"""
