"""The five questions of ``batchdet init``."""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from batchdet.draft import commented_job, job_name, place_in_full
from batchdet.errors import BatchdetError, Interrupted, MissingExtra, SpecError
from batchdet.machine import reachable
from batchdet.readiness import look_at
from batchdet.spec import JobSpec
from batchdet.specfile import parse_job
from batchdet.strict_yaml import dump_yaml
from batchdet.text import escape

Plain = dict[str, Any]
_SCORE: Final = re.compile(r"[01]?\.\d+|[01]\.")
_ADDRESS: Final = re.compile(r"[^\s:/]+:\d{1,5}")


@dataclass(frozen=True)
class _Question:
    """One question.

    Args:
        text: What is asked.
        default: The answer if a line is empty, given the job so far; "" if there is none.
        fill: Puts an answer into the job.
        look: What is looked at then: source, model or output.
    """

    text: str
    default: Callable[[Plain], str]
    fill: Callable[[Plain, str], None]
    look: str


def ask_for_job(file: str) -> str:
    """Ask until each answer can be used, and return the text of a job file.

    Args:
        file: Its name, for the text.

    Raises:
        SpecError: The answers ended too early.
    """
    job: Plain = {
        "name": "job",
        "source": {"uri": "images"},
        "model": {"uri": "builtin:sample"},
        "output": {"uri": "s3://batchdet/not-asked-yet"},
        "compute": {"address": None},
    }
    found = {}
    for number, question in enumerate(_QUESTIONS, 1):
        answer = f"question {number} of {len(_QUESTIONS)}"
        found[question.look] = _ask(question, job, answer)
    return commented_job(job, found, file)


def _ask(question: _Question, job: Plain, which: str) -> str:
    """Ask one question until its answer is usable; return what the looks found there."""
    while True:
        default = question.default(job)
        line = _read(f"{question.text}{f' [{default}]' if default else ''}: ", which) or default
        try:
            question.fill(job, line)
            return _look(question.look, job, which)
        except (Interrupted, MissingExtra):  # no answer mends that
            raise
        except BatchdetError as error:
            print(f"  {escape(error.message.splitlines()[0])}", file=sys.stderr, flush=True)


def _look(name: str, job: Plain, which: str) -> str:
    if not name:
        return ""
    try:
        found = look_at(name, _spec(job))
    except BatchdetError as error:
        if error.code != "model.untrusted":
            raise
        answer = _read(
            "  This file may run code of its maker while it is loaded. Do you trust it? (yes, no) [no]: ", which
        )
        if answer.lower() not in {"y", "yes"}:
            raise
        job["model"]["trusted"] = True
        found = look_at(name, _spec(job))
    print(f"  {escape(found)}", flush=True)
    return found


def _read(prompt: str, which: str) -> str:
    """Read one line; a pipe's is repeated, so that what is printed reads like a dialogue."""
    try:
        line = input(prompt).strip()
    except EOFError:
        print()
        raise SpecError(
            f"the answers ended before {which} had one that can be used; nothing was written",
            code="init.no_answer",
            key=which,
        ) from None
    if not sys.stdin.isatty():
        print(line)
    return line


def _spec(job: Plain) -> JobSpec:
    return parse_job(dump_yaml(job), "batchdet init")


def _fill_source(job: Plain, answer: str) -> None:
    if not answer:
        raise SpecError("give a folder, a glob, tar shards, Parquet files or a list", code="init.empty")
    job["source"] = {"uri": place_in_full(answer)}
    job["name"] = job_name(answer)


def _fill_model(job: Plain, answer: str) -> None:
    job["model"] = {"uri": place_in_full(answer)}


def _fill_output(job: Plain, answer: str) -> None:
    job["output"] = {"uri": place_in_full(answer)}


def _fill_kept(job: Plain, answer: str) -> None:
    entries = [entry.strip() for entry in answer.split(",") if entry.strip()]
    scores = [float(entry) for entry in entries if _SCORE.fullmatch(entry)]
    classes = [int(entry) if entry.isdigit() else entry for entry in entries if not _SCORE.fullmatch(entry)]
    if len(scores) > 1:
        raise SpecError(f"found {len(scores)} scores; give one, such as 0.25", code="init.scores")
    job["model"]["score_threshold"] = scores[0] if scores else _usual_score()
    job["model"]["classes"] = None if classes in ([], ["all"]) else classes


def _fill_address(job: Plain, answer: str) -> None:
    if answer not in {"here", "auto"} and not _ADDRESS.fullmatch(answer):
        raise SpecError(
            "write here, auto (a cluster that this machine is a node of) or HOST:PORT of its head; "
            "from elsewhere use batchdet submit",
            code="init.address",
        )
    if answer not in {"here", "auto"} and not reachable(answer):
        raise SpecError(f"nobody listens at {answer}", code="init.address")
    job["compute"]["address"] = None if answer == "here" else answer


def _usual_score() -> float:
    from batchdet.spec import ModelSpec

    return float(ModelSpec.model_fields["score_threshold"].default)


_QUESTIONS: Final = (
    _Question(
        "1. Where are the images? (folder, glob, tar shards, Parquet files or a list)",
        lambda _: "",
        _fill_source,
        "source",
    ),
    _Question(
        "2. Which model? (a file, a Hugging Face folder, or builtin:sample)",
        lambda _: "builtin:sample",
        _fill_model,
        "model",
    ),
    _Question("3. Where shall the tables go?", lambda job: f"{job['name']}-labels", _fill_output, "output"),
    _Question(
        "4. Which classes, and from which score? (labels with commas between them, then a score)",
        lambda _: f"all, {_usual_score()}",
        _fill_kept,
        "model",
    ),
    _Question("5. Where does it run? (here, auto, or HOST:PORT of a Ray cluster)", lambda _: "here", _fill_address, ""),
)
