"""The workers that share a batch: one process alone, or several that average their gradients."""

from collections.abc import Callable
from typing import cast

import torch
from torch import distributed, nn

from batchdet.training.assignment import Truth


class Crew:
    """One process that trains alone.

    Args:
        stop_wanted: asked after every step.

    Attributes:
        rank: this process, from 0.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    def __init__(self, stop_wanted: Callable[[], bool] = lambda: False) -> None:
        self._stop_wanted = stop_wanted

    @property
    def leads(self) -> bool:
        """Whether this process speaks and writes."""
        return self.rank == 0

    def share(self, learner: nn.Module) -> Callable[[torch.Tensor, Truth], torch.Tensor]:
        """Return what computes a batch's loss, so that gradients are those of the whole batch."""
        return cast(Callable[[torch.Tensor, Truth], torch.Tensor], learner)

    def agree(self, value: float) -> float:
        """Return the leader's value."""
        return value

    def stopped(self) -> bool:
        """Say whether all shall stop."""
        return self._stop_wanted()


class DistributedCrew(Crew):
    """Processes of a torch.distributed group that exists; each sees its share of every batch.

    Gradients are averaged over the processes, batch norm's statistics are the leader's.

    Source: Li et al., "PyTorch Distributed: Experiences on Accelerating Data Parallel Training", arXiv:2006.15704.
    """

    def __init__(self, stop_wanted: Callable[[], bool] = lambda: False) -> None:
        super().__init__(stop_wanted)
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()

    def share(self, learner: nn.Module) -> Callable[[torch.Tensor, Truth], torch.Tensor]:
        """Return what computes a batch's loss, so that gradients are those of the whole batch."""
        shared = nn.parallel.DistributedDataParallel(learner)
        return cast(Callable[[torch.Tensor, Truth], torch.Tensor], shared)

    def agree(self, value: float) -> float:
        """Return the leader's value."""
        said = torch.tensor([value], dtype=torch.float64)
        distributed.broadcast(said, 0)
        return float(said)

    def stopped(self) -> bool:
        """Say whether all shall stop: as soon as one wants it."""
        wanted = torch.tensor([int(self._stop_wanted())])
        distributed.all_reduce(wanted, distributed.ReduceOp.MAX)
        return bool(wanted)
