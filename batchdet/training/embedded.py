"""Train the embedded model: ``python -m batchdet.training.embedded --minutes 55 --out /tmp/sample``.

Every image it learns from is drawn for it and never used again. The folder ``--out`` receives
``checkpoint.pt`` now and then; `batchdet.training.publish` turns one into the ONNX file and its card.

``--init`` begins a further stage with the weights of an earlier one. A high ``--score-power`` helps there: the
cells of a trained net that answer for an object then stay the same, and its neighbours learn to be silent.
"""

import argparse
from pathlib import Path

from batchdet.training.assignment import SCORE_POWER
from batchdet.training.loop import Schedule, Trainer
from batchdet.training.stream import SceneSource


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(prog="python -m batchdet.training.embedded", description=__doc__)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, help="train for so many batches; repeatable")
    length.add_argument("--minutes", type=float, default=55.0, help="train for so long (default 55)")
    parser.add_argument("--seed", type=int, default=0, help="of the first weights and of the scenes")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint.pt")
    parser.add_argument("--rate", type=float, default=3e-3, help="highest learning rate (default 0.003)")
    parser.add_argument("--warmup", type=int, default=200, help="steps over which the rate rises (default 200)")
    parser.add_argument(
        "--score-power", type=float, default=SCORE_POWER, help="weight of the score in the one-to-one assignment"
    )
    origin = parser.add_mutually_exclusive_group()
    origin.add_argument(
        "--init", type=Path, help="begin with the running mean of this checkpoint; needs a --seed of its own"
    )
    origin.add_argument(
        "--resume", action="store_true", help="go on from the folder's checkpoint.pt, by its own schedule"
    )
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    checkpoint = options.out / "checkpoint.pt"
    schedule = Schedule(
        steps=options.steps,
        minutes=options.minutes,
        seed=options.seed,
        rate=options.rate,
        warmup_steps=options.warmup,
        score_power=options.score_power,
    )
    if options.resume:
        trainer = Trainer.restore(checkpoint)
    elif options.init:
        trainer = Trainer.begin_from(options.init, schedule)
    else:
        trainer = Trainer(schedule)
    trainer.run(checkpoint, SceneSource(trainer.schedule.seed, trainer.schedule.batch_rows))


if __name__ == "__main__":
    main()
