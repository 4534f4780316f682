"""Train the embedded model: ``python -m batchdet.training.embedded --minutes 55 --out /tmp/sample``.

Every image it learns from is drawn for it and never used again. The folder ``--out`` receives
``checkpoint.pt`` now and then; `batchdet.training.publish` turns one into the ONNX file and its card.
"""

import argparse
from pathlib import Path

from batchdet.training.loop import Schedule, Trainer


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(prog="python -m batchdet.training.embedded", description=__doc__)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, help="train for so many batches; repeatable")
    length.add_argument("--minutes", type=float, default=55.0, help="train for so long (default 55)")
    parser.add_argument("--seed", type=int, default=0, help="of the first weights and of the scenes")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint.pt")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the folder's checkpoint.pt, by its own schedule"
    )
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    checkpoint = options.out / "checkpoint.pt"
    schedule = Schedule(steps=options.steps, minutes=options.minutes, seed=options.seed)
    trainer = Trainer.restore(checkpoint) if options.resume else Trainer(schedule)
    trainer.run(checkpoint)


if __name__ == "__main__":
    main()
