"""One bad item fails alone, whatever the model does; a new version is watched by the old one."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from backends.tensor.executor import Executor
from backends.tensor.job import Job
from backends.tensor.loading import Version
from backends.tensor.reply import Outcome, result_frame
from backends.tensor.runner import Runner
from backends.wire import Decoder, Fault, Frame
from backends.worker import Intake
from tests.backends.fakes import Breach, Exits, Scale, Wider, execute_frame, unpack, x


class Device:
    """An executor and what it posts, without a thread."""

    def __init__(self, model, name="1-a"):
        self.errors, self.batches, self.answers = [], [], {}
        runner = Runner(torch.device("cpu"), lambda error, rows: self.errors.append(error))
        self.executor = Executor(runner, self._posted)
        self.version = Version(name, model, model.signature)
        self.executor.serve(self.version, None)

    def _posted(self, answers, batch):
        for job, answer in answers:
            assert job not in self.answers, "answered twice"
            self.answers[job] = answer
        self.batches.append(batch)

    def run(self, *frames, arrived=None, signature=None):
        at = time.monotonic() if arrived is None else arrived
        signature = signature or self.version.signature
        jobs = [Job(None, frame, signature, at) for frame in frames]
        self.executor(jobs)
        return [self._answer(job) for job in jobs]

    def _answer(self, job):
        answer = self.answers[job]
        if isinstance(answer, Fault):
            return answer
        return unpack(Decoder().feed(b"".join(result_frame(job, answer)))[0])

    def outcome(self):
        (outcome,) = self.answers.values()
        assert isinstance(outcome, Outcome)
        return outcome


def frame(*requests, **options):
    return execute_frame(Scale.signature, [x(*values) for values in requests], **options)


def ys(answers):
    return [
        answer["y"].flatten().tolist() if isinstance(answer, dict) else answer.code
        for answer in answers
    ]


def test_a_bad_item_fails_alone_and_its_frame_and_others_are_answered():
    device = Device(Scale(picky=True))
    first, second = device.run(frame((1.0,), (-5.0,), (2.0, 3.0)), frame((4.0,)))
    assert ys(first) == [[2.0], "model_error", [4.0, 6.0]]
    assert ys(second) == [[8.0]]
    assert first[1] == Fault(status=500, code="model_error", message="ValueError: -5 is below 0")
    assert len(device.errors) == 1
    assert device.batches[0].rows == 5 and device.batches[0].failed == 1


def test_a_lone_request_that_raises_is_not_run_again():
    model = Scale(picky=True)
    calls = []
    infer = model.infer
    model.infer = lambda x: (calls.append(1), infer(x))[1]
    (answers,) = Device(model).run(frame((-1.0,)))
    assert ys(answers) == ["model_error"] and len(calls) == 1


def test_a_model_that_exits_does_not_end_the_process():
    (answers,) = Device(Exits()).run(frame((1.0,), (101.0,)))
    assert ys(answers) == [[2.0], "model_error"]
    assert answers[1].message == "SystemExit: 3"


@pytest.mark.parametrize(
    ("how", "said", "param"),
    [
        ("name", "output 'y' is missing; infer returned z", "y"),
        ("extra", "infer returned 'z', which its signature does not name", "z"),
        ("dtype", "output 'y' is FP64, its signature says FP32", "y"),
        ("shape", "output 'y' has shape [1, 2], its signature says [1, 1]", "y"),
        ("batch", "output 'y' has shape [0, 1], its signature says [1, 1]", "y"),
        ("kind", "output 'y' is list, not a tensor or a numpy array", "y"),
        ("none", "infer returned NoneType, not a mapping", None),
    ],
)
def test_a_breach_of_the_signature_is_named(how, said, param):
    (answers,) = Device(Breach(how)).run(frame((1.0,), (2.0,)))
    for fault in answers:
        assert isinstance(fault, Fault)
        assert said in fault.message
        assert (fault.status, fault.code, fault.param) == (500, "model_error", param)


def in_numpy(make):
    model = Scale()
    infer = model.infer
    model.infer = lambda x: {"y": make(infer(x)["y"].numpy())}
    return Device(model)


@pytest.mark.parametrize(
    "make",
    [
        lambda y: y,
        lambda y: np.asfortranarray(np.repeat(y, 2, 1))[:, ::2],
        lambda y: np.broadcast_to(y, y.shape),  # which may not be written to
    ],
)
def test_numpy_arrays_are_as_good_as_tensors(make):
    (answers,) = in_numpy(make).run(frame((1.0,), (2.0, 3.0)))
    assert ys(answers) == [[2.0], [4.0, 6.0]]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda y: y.astype("f8"), "output 'y' is FP64, its signature says FP32"),
        (lambda y: y.astype(object), "output 'y' is a numpy array of object"),
        (lambda y: y.astype(">f4"), "output 'y' is a numpy array of >f4"),
    ],
)
def test_numpy_arrays_of_another_type_are_named(make, said):
    (answers,) = in_numpy(make).run(frame((1.0,)))
    assert said in answers[0].message and answers[0].param == "y"


def test_nan_is_no_error():
    (answers,) = Device(Breach("nan")).run(frame((1.0,)))
    assert answers[0]["y"].isnan().all()


def test_the_expired_are_not_started_and_the_others_are():
    device = Device(Scale())
    late = frame((1.0,), (2.0,), (3.0,), deadlines_ms=[None, 5.0, 1e6])
    (answers,) = device.run(late, arrived=time.monotonic() - 1.0)
    assert ys(answers) == [[2.0], "deadline_exceeded", [6.0]]
    assert answers[1].status == 504
    assert device.batches[0].rows == 2


def test_a_frame_of_expired_requests_does_not_reach_the_model():
    device = Device(Scale())
    (answers,) = device.run(frame((1.0,), deadlines_ms=[1.0]), arrived=time.monotonic() - 1.0)
    assert ys(answers) == ["deadline_exceeded"]
    assert device.batches == [None]


def test_a_frame_without_rows_is_answered_without_the_model():
    model = Scale()
    model.infer = None
    (answers,) = Device(model).run(frame((), ()))
    assert [tuple(answer["y"].shape) for answer in answers] == [(0, 1), (0, 1)]


def test_cancelled_jobs_are_skipped():
    device = Device(Scale())
    jobs = [Job(None, frame((value,)), Scale.signature, time.monotonic()) for value in (1.0, 2.0)]
    jobs[0].done = True
    device.executor(jobs)
    assert list(device.answers) == jobs[1:]
    assert device.outcome().batch == 1


def test_times_version_and_batch_are_told():
    device = Device(Scale())
    device.run(frame((1.0, 2.0)), arrived=time.monotonic() - 0.5)
    outcome = device.outcome()
    assert (outcome.version, outcome.batch) == ("1-a", 2)
    assert outcome.queue_us >= 500_000 and outcome.compute_us > 0


class Mutates(Scale):
    """Changes its input, then raises if there is a bad item."""

    def infer(self, x):
        x += 1
        if bool((x > 50).any()):
            raise ValueError("too much")
        return {"y": x}


def borrowed(made: Frame) -> Frame:
    """As the decoder gives frames that are larger than its scratch buffer."""
    return made._replace(data=memoryview(bytearray(made.data)))


def test_requests_run_again_see_what_the_client_sent():
    (answers,) = Device(Mutates()).run(frame((1.0,), (99.0,)))
    assert ys(answers) == [[2.0], "model_error"]
    first, second = Device(Mutates()).run(borrowed(frame((1.0,))), borrowed(frame((99.0,))))
    assert ys(first) + ys(second) == [[2.0], "model_error"]


def test_what_was_changed_in_the_frame_itself_is_not_run_again():
    (answers,) = Device(Mutates()).run(borrowed(frame((1.0,), (99.0,))))
    assert ys(answers) == ["model_error", "model_error"]
    assert answers[0].message == "ValueError: too much (and it had changed its input in place)"


# -------------------------------------------------------------------------------------- versions


def test_pins_run_on_the_version_they_name():
    device = Device(Scale(2.0))
    device.executor.serve(Version("2-b", Scale(3.0), Scale.signature), None)
    assert ys(device.run(frame((1.0,), version="1-a"))[0]) == [[2.0]]
    assert ys(device.run(frame((1.0,)))[0]) == [[3.0]]
    device.executor.release("1-a")
    (fault,) = device.run(frame((1.0,), version="1-a"))
    assert (fault.status, fault.code, fault.retryable) == (404, "model_version_not_found", True)


def test_frames_that_waited_across_a_change_of_signature():
    device = Device(Scale(2.0))
    wider = Wider(3.0)
    device.executor.serve(Version("2-b", wider, wider.signature), None)
    # Together they are more than the new version takes at a time.
    answers = device.run(frame((1.0, 2.0, 3.0)), frame((4.0, 5.0)))
    assert [ys(answer) for answer in answers] == [[[3.0, 6.0, 9.0]], [[12.0, 15.0]]]
    assert answers[0][0]["z"].flatten().tolist() == [1, 2, 3]
    (fault,) = device.run(frame((1.0, 2.0, 3.0, 4.0, 5.0)))
    assert (fault.status, fault.retryable) == (503, True)
    assert "changed to version 2-b" in fault.message and "max_batch_size of 4" in fault.message


def probation(new, old):
    device = Device(old, "1-old")
    device.executor.serve(Version("2-new", new, new.signature), device.version)
    return device


def test_on_probation_the_old_version_answers_what_the_new_one_cannot():
    device = probation(Scale(3.0, picky=True), Scale(2.0))
    (answers,) = device.run(frame((1.0,), (-1.0,)))
    assert ys(answers) == [[2.0], [-2.0]]
    assert device.outcome().version == "1-old"
    (batch,) = device.batches
    assert batch.version == "2-new"
    assert batch.regressed == "it fails where 1-old does not: ValueError: -1 is below 0"


def test_an_item_on_which_both_fail_is_no_regression():
    device = probation(Scale(3.0, picky=True), Scale(2.0, picky=True))
    (answers,) = device.run(frame((1.0,), (-1.0,)))
    assert ys(answers) == [[3.0], "model_error"]
    assert device.outcome().version == "2-new"
    assert (device.batches[0].regressed, device.batches[0].failed) == ("", 0)


def test_pinned_frames_get_the_version_they_asked_for_even_if_it_fails():
    device = probation(Scale(3.0, picky=True), Scale(2.0))
    (answers,) = device.run(frame((-1.0,), version="2-new"))
    assert ys(answers) == ["model_error"]
    assert device.outcome().version == "2-new"


def test_after_the_commit_nobody_watches():
    device = probation(Scale(3.0, picky=True), Scale(2.0))
    device.executor.commit()
    (answers,) = device.run(frame((-1.0,)))
    assert ys(answers) == ["model_error"]
    assert device.batches[0].failed == 1


def test_versions_of_unlike_signatures_are_not_compared():
    device = probation(Wider(3.0, picky=True), Scale(2.0))
    device.executor._serving.model.infer = None
    (answers,) = device.run(frame((1.0,)))
    assert ys(answers) == ["model_error"]
    assert (device.batches[0].regressed, device.batches[0].failed) == ("", 1)


def paced(seconds):
    """A device on which a batch is known to take so long."""
    device = Device(Scale())
    for _ in range(50):
        device.executor._pace.observe(1, seconds, time.monotonic())
    return device


def test_what_cannot_end_in_time_is_not_begun():
    device = paced(10.0)
    (answers,) = device.run(frame((1.0,), (2.0,), (3.0,), deadlines_ms=[None, 5000.0, 60_000.0]))
    assert ys(answers) == [[2.0], "deadline_exceeded", [6.0]]


def test_the_hopeless_are_answered_while_they_wait_and_the_others_stay():
    device = paced(10.0)
    intake = Intake(100)
    jobs = [
        Job(None, frame((1.0,), (2.0,), deadlines_ms=left), Scale.signature, time.monotonic())
        for left in ([3000.0, 4000.0], [3000.0, None], [None, None])
    ]
    for job in jobs:
        assert intake.offer(job)
    device.executor.give_up(intake)
    assert list(device.answers) == jobs[:1]
    assert device.answers[jobs[0]].code == "deadline_exceeded"
    assert intake.rows == 4


def test_a_new_version_is_not_judged_by_the_pace_of_the_old_one():
    device = paced(10.0)
    device.executor.serve(Version("2-b", device.version.model, device.version.signature), None)
    (answers,) = device.run(frame((1.0,), deadlines_ms=[5000.0]))
    assert ys(answers) == [[2.0]]
