"""Counts one worker's memory, part by part, at the moment of a step when it holds most.

Between steps a worker holds weights, optimizer state and buffers. On top of that come, one after
the other: the last parameters of the forward pass (ZeRO-3), the backward pass, the reduction of the
gradients, the optimizer's step. The largest of them decides.

Symbols: T trained elements, S = T / W those of one worker, p bytes of the run's precision.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from timellama_dist.config.schema import RunConfig
from timellama_dist.planning.activations import Activations
from timellama_dist.planning.hardware import Hardware
from timellama_dist.planning.policy import ZeroPolicy
from timellama_dist.planning.shape import LlamaShape, ParameterSize

ADAM_BYTES = 12  # float32 master weight and two moments of one element
ADAM_BYTES_WITHOUT_MASTER = 8


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Bytes by part."""

    frozen: int = 0
    """The backbone as it is held: this worker's shard of it under ZeRO-3."""
    quantisation_state: int = 0
    """Scales of 4-bit matrices and other buffers; never sharded."""
    trained: int = 0
    gradients: int = 0
    optimizer: int = 0
    buckets: int = 0
    """Where gradients are collected for reduction."""
    gathered: int = 0
    """Parameters of others that ZeRO-3 holds for the blocks at work."""
    activations: int = 0
    scratch: int = 0
    """Temporaries."""

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(asdict(self).values())

    def __add__(self, other: "Parts") -> "Parts":
        added = asdict(other)
        return Parts(**{name: size + added[name] for name, size in asdict(self).items()})


@dataclass(frozen=True, kw_only=True)
class Memory:
    """The memory that one worker needs."""

    held: Parts
    """Between steps, on the device."""
    moments: dict[str, Parts]
    """What comes on top of it, by moment of a step."""
    host: Parts
    """Offloaded, in the node's memory."""
    framework: int
    """Assumed, see `Hardware.framework_bytes`."""

    @property
    def busiest(self) -> str:
        """The moment of a step that needs most."""
        return max(self.moments, key=lambda name: self.moments[name].total)

    @property
    def peak(self) -> Parts:
        """Bytes on the device at the busiest moment."""
        return self.held + self.moments[self.busiest]

    @property
    def total(self) -> int:
        """Bytes on the device, framework included."""
        return self.peak.total + self.framework


class Sizes:
    """Sums over a run's parameters, in bytes unless they say elements."""

    def __init__(
        self, parameters: Sequence[ParameterSize], zero: ZeroPolicy, world_size: int, p: int
    ) -> None:
        def total(size_of: Callable[[ParameterSize], int], trained: bool | None = None) -> int:
            chosen = [size for size in parameters if trained in (None, size.trained)]
            return sum(size_of(size) * size.count for size in chosen)

        def whole(size: ParameterSize) -> int:
            return size.held_elements * size.itemsize(p)

        def shard(size: ParameterSize) -> int:
            return -(-size.held_elements // world_size) * size.itemsize(p)

        def lasting(size: ParameterSize) -> int:
            return whole(size) if size.held_elements <= zero.persistence_threshold else 0

        self.world_size = world_size
        self.item = p
        self.frozen = {"whole": total(whole, False), "shard": total(shard, False)}
        self.trained = {"whole": total(whole, True), "shard": total(shard, True)}
        self.whole = self.frozen["whole"] + self.trained["whole"]
        # Small parameters stay whole on every worker, besides their shards.
        self.lasting = {"frozen": total(lasting, False), "trained": total(lasting, True)}
        self.trained_elements = self.trained["whole"] // p
        # Stages 1 and 2 share out one flat tensor, stage 3 each parameter.
        flat = -(-self.trained_elements // (2 * world_size)) * 2
        self.own_elements = self.trained["shard"] // p if zero.stage == 3 else flat
        self.largest_trained = max(size.elements for size in parameters if size.trained)
        self.four_bit = total(lambda size: whole(size) if size.four_bit else 0)
        self.quantisation_state = total(lambda size: size.quantisation_bytes)
        self.elements = total(lambda size: size.held_elements)
        self.travelling = self.whole - sum(self.lasting.values())
        # ZeRO-3 keeps what is used again within so many elements of the trace, which goes forward
        # to the end and back: the last half of them.
        kept = min(1.0, zero.reuse_distance / 2 / self.elements)
        self.kept = int(self.travelling * kept)
        # Each module that is entered has another bucket fetched, far faster than they are used, so
        # prefetching runs ahead until it meets its limit.
        self.live_share = max(kept, min(1.0, zero.live_limit / self.elements))

        units = {size.unit for size in parameters if size.unit is not None}
        self.largest_unit = max(
            (sum(whole(size) for size in parameters if size.unit == unit) for unit in units),
            default=0,
        )

    def resident(self, config: RunConfig) -> int:
        """Count gathered bytes at the turn from the forward to the backward pass."""
        live = int(self.live_share * self.travelling)
        if config.train.gradient_checkpointing:
            return live
        # bitsandbytes keeps each packed matrix for its backward pass, out of ZeRO's reach.
        return live + int((1 - self.live_share) * self.four_bit)

    def in_flight(self, zero: ZeroPolicy, num_groups: int) -> int:
        """Count the buffers of so many groups that are fetched together."""
        share = min(1.0, num_groups * zero.prefetch_bucket / self.elements)
        groups = int(share * self.travelling)
        # A unit that the limit let nobody prefetch comes as one group, and is copied out of it.
        return groups if self.live_share == 1 else max(groups, 2 * self.largest_unit)


def count_memory(
    config: RunConfig,
    shape: LlamaShape,
    sizes: Sizes,
    activations: Activations,
    zero: ZeroPolicy,
    *,
    turns: int,
    prompt_tokens: int,
    hardware: Hardware,
) -> Memory:
    """Count the memory of one worker.

    Args:
        turns: micro-batches of an optimizer step.
        prompt_tokens: of all data sets together.
    """
    held, host = _held(sizes, zero)
    prompts = 4 * prompt_tokens * shape.hidden_size if config.model.alignment else 0
    buffers = 4 * shape.head_dim + prompts  # the rotation's frequencies, twice
    held += Parts(quantisation_state=sizes.quantisation_state + buffers)
    if not hardware.is_gpu:
        held, host = held + host, Parts()  # device and host are one
    kept, scratch = activations.total(config.backbone.num_blocks), activations.scratch
    moments = {
        "backward pass": _backward(config, kept, scratch, sizes, zero, turns),
        "reduction": _reduction(sizes, zero, turns),
        "optimizer step": _step(sizes, zero, hardware),
    }
    if zero.stage == 3:
        moments["gathering"] = _gathering(config, kept, scratch, sizes, zero)
    return Memory(held=held, moments=moments, host=host, framework=hardware.framework_bytes)


def _held(sizes: Sizes, zero: ZeroPolicy) -> tuple[Parts, Parts]:
    """Count what is held between steps: on the device, and on the host."""
    p, own = sizes.item, sizes.own_elements
    if zero.stage == 0:
        adam = ADAM_BYTES if p < 4 else ADAM_BYTES_WITHOUT_MASTER
        whole = Parts(frozen=sizes.frozen["whole"], trained=sizes.trained["whole"])
        return whole + Parts(optimizer=adam * sizes.trained_elements), Parts()
    device, host = Parts(), Parts()
    optimizer = Parts(optimizer=ADAM_BYTES * own, gradients=p * own if zero.stage == 3 else 0)
    if zero.offloads_optimizer:
        # Besides, a float32 copy of the gradients lies ready for the optimizer.
        host += optimizer + Parts(gradients=4 * own)
    else:
        device += optimizer
    if zero.stage < 3:
        weights = Parts(frozen=sizes.frozen["whole"], trained=sizes.trained["whole"])
        return device + weights, host
    shards = Parts(frozen=sizes.frozen["shard"], trained=sizes.trained["shard"])
    if zero.offloads_parameters:
        host += shards
    else:
        device += shards
    lasting = Parts(frozen=sizes.lasting["frozen"], trained=sizes.lasting["trained"])
    bucket = Parts(buckets=zero.num_buckets * zero.reduce_bucket * p)
    return device + lasting + bucket, host


def _gathering(
    config: RunConfig, activations: int, scratch: int, sizes: Sizes, zero: ZeroPolicy
) -> Parts:
    """Count the forward pass under ZeRO-3, when the last parameters arrive.

    They come in groups of a prefetch bucket. A group's buffer stays until its last parameter is
    used, beside the parameters that were copied out of it; meanwhile the next group is under way.
    """

    def parts(num_groups: int, done: float) -> Parts:
        return Parts(
            gathered=sizes.resident(config) + sizes.in_flight(zero, num_groups),
            activations=int(done * activations),
            scratch=scratch,
        )

    # Two groups before the end, or one at the end.
    before = 1 - sizes.in_flight(zero, 2) / max(1, sizes.travelling)
    return max(parts(2, before), parts(1, 1.0), key=lambda held: held.total)


def _backward(
    config: RunConfig, activations: int, scratch: int, sizes: Sizes, zero: ZeroPolicy, turns: int
) -> Parts:
    """Count the backward pass at its beginning, when all activations are still there."""
    gradients = bucket = gathered = 0
    if turns > 1 and zero.stage < 3:
        # Of the micro-batches before, summed up.
        own = zero.stage == 2
        gradients = sizes.item * sizes.own_elements if own else sizes.trained["whole"]
    if zero.stage in (1, 2):
        bucket = zero.num_buckets * zero.reduce_bucket * sizes.item
    if zero.stage == 3:
        gathered = min(sizes.travelling, sizes.resident(config) + sizes.in_flight(zero, 2))
    return Parts(
        gradients=gradients,
        buckets=bucket,
        gathered=gathered,
        activations=activations,
        scratch=scratch,
    )


def _reduction(sizes: Sizes, zero: ZeroPolicy, turns: int) -> Parts:
    """Count the end of the backward pass, when all gradients are there."""
    whole, own, p = sizes.trained["whole"], sizes.item * sizes.own_elements, sizes.item
    if zero.stage == 0:
        return Parts(gradients=whole, scratch=whole)
    flat = min(whole, zero.reduce_bucket * p)
    if zero.stage == 3:
        return Parts(scratch=flat + flat // sizes.world_size)
    # Those of full buckets, and of micro-batches before, were put aside.
    aside = whole > flat or (turns > 1 and zero.stage == 2)
    return Parts(
        gradients=own if aside else 0,
        buckets=zero.num_buckets * zero.reduce_bucket * p,
        scratch=flat,
    )


def _step(sizes: Sizes, zero: ZeroPolicy, hardware: Hardware) -> Parts:
    """Count the optimizer's step: gradients in float32, and Adam's temporaries."""
    own, p = sizes.own_elements, sizes.item
    if zero.offloads_optimizer and zero.stage:
        return Parts(scratch=p * own if hardware.is_gpu else 8 * own)
    if zero.stage == 0:
        gradients = sizes.trained["whole"] + (4 * sizes.trained_elements if p < 4 else 0)
        # On a GPU all parameters at once, else one after the other.
        at_once = sizes.trained_elements if hardware.is_gpu else 2 * sizes.largest_trained
        return Parts(gradients=gradients, scratch=4 * at_once)
    return Parts(gradients=4 * own, scratch=(4 if hardware.is_gpu else 8) * own)
