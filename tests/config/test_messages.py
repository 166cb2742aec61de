"""What is said, once and of whom."""

from __future__ import annotations

import logging
import threading
from contextlib import suppress

from purity_cli.errors import about, gathered, log
from tests.logged import logged


def test_a_subject_stands_before_each_message_of_its_thread() -> None:
    with logged(logging.INFO) as heard:
        with about("job"):
            log.warning("careful, 100 %s")
            log.info("by the way")
            other = threading.Thread(target=log.warning, args=("of no job",))
            other.start()
            other.join()
        log.warning("alone")
    assert heard == ["job: careful, 100 %s", "job: by the way", "of no job", "alone"]


def test_gathered_warnings_come_once_with_all_whom_they_concern_also_after_an_error() -> None:
    with logged(logging.INFO) as heard, suppress(KeyboardInterrupt), gathered(2):
        for name in ("epoch1", "epoch2"):
            with about(name):
                log.warning("few images")
                log.info("at work")
                if name == "epoch2":
                    log.warning("averaged weights")
        assert heard == ["epoch1: at work", "epoch2: at work"]
        raise KeyboardInterrupt
    assert heard[2:] == ["few images", "epoch2: averaged weights"]
