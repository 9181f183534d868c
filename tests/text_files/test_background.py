import threading
import time

import pytest

from elseq.text_files.background import WAITING, Background


def test_in_order():
    done = []
    with Background() as background:
        for number in range(100):
            background.give(done.append, number)
    assert done == list(range(100))


def test_not_too_much_waits():
    go, begun = threading.Event(), []

    def work(number):
        begun.append(number)
        go.wait()

    with Background() as background:
        giver = threading.Thread(target=lambda: [background.give(work, number) for number in range(3 * WAITING)])
        giver.start()
        time.sleep(0.1)
        assert giver.is_alive()
        assert background._thread._work_queue.qsize() <= WAITING
        go.set()
        giver.join()
    assert begun == list(range(3 * WAITING))


def fail():
    raise OSError("the disk is full")


def test_an_error_reaches_the_next_call():
    with pytest.raises(OSError, match="full"), Background() as background:
        background.give(fail)
        time.sleep(0.05)
        background.give(print)
        pytest.fail("it was not raised")


def test_an_error_reaches_the_end():
    with pytest.raises(OSError, match="full"), Background() as background:
        background.give(fail)


def test_what_was_given_is_finished_though_the_model_fails():
    done = []
    with pytest.raises(KeyboardInterrupt), Background() as background:
        background.give(time.sleep, 0.05)
        background.give(done.append, 1)
        raise KeyboardInterrupt
    assert done == [1]
