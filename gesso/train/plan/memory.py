"""Where the memory of a training goes, from the trace of a step."""

from __future__ import annotations

from dataclasses import dataclass

from gesso.train.plan.step import StepTrace
from gesso.train.plan.trace import Trace, live, stored

ALLOCATOR = 100 * 2**20
"""What the C library's allocator holds besides, in a CPU training; measured (docs/plan.md)."""

COMPILER = 60 * 2**20
"""What torch.compile leaves in memory; measured (docs/plan.md)."""

FLOAT = 4  # bytes of a weight, gradient or average


@dataclass
class Memory:
    """Bytes in one process or on one device, at the worst moment of a step.

    Attributes:
        weights: of everything that is kept, frozen parts included.
        gradients, optimizer, average: of what learns.
        activations: what the forward pass keeps for the backward pass.
        workspace: what comes and goes beside it.
        program: what the process takes before it trains (interpreter, libraries, context).
    """

    weights: float
    gradients: float
    optimizer: float
    average: float
    activations: float
    workspace: float
    program: float

    @property
    def peak(self) -> float:
        return sum(vars(self).values())

    @property
    def fixed(self) -> float:
        """What does not depend on the batch."""
        return self.peak - self.activations - self.workspace

    def largest(self) -> tuple[str, float]:
        """The part that takes most."""
        return max(vars(self).items(), key=lambda part: part[1])


def memory_of(
    step: StepTrace,
    *,
    compiled: bool,
    program: float,
    shards: int = 1,
    slack: float = 0.0,
    reused: bool = True,
) -> Memory:
    """The memory that a step needs.

    Gradients are freed before the next step, so there are few of them where activations are most:
    the peak is that of the passes or that of the update, whichever is higher, and the parts are
    those of that moment.

    Args:
        step: as one process takes it.
        compiled: whether blocks are compiled, so that little but products' operands are kept.
        program: bytes before training.
        shards: processes that weights, gradients, states and averages are divided among.
        slack: share of all that the allocator loses between blocks.
        reused: what gradients leave is taken by the next step's activations: not so with the C
            library's allocator on a CPU (docs/plan.md).
    """
    worst = Memory(0, FLOAT * step.trained, 0, 0, 0, _most(step.update), 0)
    for trace, _ in step.passes:
        buffers = stored(trace) if compiled else trace.buffers
        when, _ = max(live(trace, buffers), key=lambda moment: moment[1])
        alive = [b for b in buffers if b.born <= when and (b.died is None or b.died > when)]
        left = sum(b.bytes for b in alive if b.died is None)  # gradients outlive the pass
        kept = sum(b.bytes for b in alive if b.died is not None and b.born <= trace.turn)
        passing = sum(b.bytes for b in alive) - left - kept
        moment = Memory(0, left, 0, 0, kept, passing, 0)
        worst = max(worst, moment, key=lambda m: m.peak)
    worst.weights = FLOAT * step.parameters / shards
    worst.gradients = (worst.gradients if reused else FLOAT * step.trained) / shards
    worst.optimizer = step.state_bytes / shards
    worst.average = FLOAT * step.trained / shards
    worst.workspace += slack * worst.peak
    worst.program = program
    return worst


def _most(trace: Trace) -> int:
    """Of what comes and goes: what stays are the optimiser's states."""
    passing = [b for b in trace.buffers if b.died is not None]
    return max((n for _, n in live(trace, passing)), default=0)
