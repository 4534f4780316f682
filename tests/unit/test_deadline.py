import signal
import threading
import time

import pytest

from batchdet.deadline import Deadline
from batchdet.errors import ClusterError

pytestmark = pytest.mark.acceptance("R39")


def test_no_progress_raises_what_was_waited_for() -> None:
    began = time.monotonic()
    with Deadline(0.4) as deadline:
        deadline.expect("labelling", detail=lambda: " of segment 7")
        with pytest.raises(ClusterError) as raised:
            time.sleep(10)
    assert 0.3 < time.monotonic() - began < 5
    error = raised.value
    assert (error.code, error.key) == ("cluster.no_progress", "compute.no_progress_timeout_s")
    assert error.exit_status == 5
    assert "labelling of segment 7" in error.message


def test_progress_a_new_phase_and_more_time_begin_anew() -> None:
    with Deadline(0.5) as deadline:
        deadline.expect("one", more_s=0.5)
        time.sleep(0.8)
        deadline.expect("two")
        for _ in range(4):
            time.sleep(0.3)
            deadline.progress()
        deadline.expect("three")
        time.sleep(0.3)
        deadline.rest("the commit")
        time.sleep(0.8)


def test_progress_that_the_process_has_not_seen_counts() -> None:
    looks = iter([True, True, False])
    began = time.monotonic()
    with Deadline(0.3) as deadline:
        deadline.expect("labelling", moved=lambda: next(looks))
        with pytest.raises(ClusterError):
            time.sleep(10)
    assert time.monotonic() - began > 0.8


def test_an_orderly_end_that_hangs_is_interrupted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchdet.deadline._GRACE_S", 1.2)
    began = time.monotonic()

    def hang_twice() -> None:
        try:
            time.sleep(10)
        finally:
            time.sleep(10)

    with Deadline(0.2) as deadline:
        deadline.expect("one")
        with pytest.raises(ClusterError, match="during one;"):
            hang_twice()
    assert time.monotonic() - began < 5


def test_the_timer_is_left_as_it_was() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with Deadline(1) as deadline:
        deadline.expect("one")
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_thread_has_no_timer() -> None:
    done = []

    def work() -> None:
        with Deadline(0.1) as deadline:
            deadline.expect("one")
            time.sleep(0.3)
        done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]
