"""The batches of a run by the definitions, with all rows in memory as lists: what mapped rows must give too."""

import numpy as np

from scaleup.data.batching import cut_by_tokens, order_by_length, pack
from scaleup.data.order import MixtureOrder
from scaleup.data.tokenization import FILLER, join

WINDOW = 50


def shuffled(things, *seed):
    return [things[place] for place in np.random.default_rng(seed).permutation(len(things))]


def row_at(sources, weights, seed, shuffle, position):
    source, draw = MixtureOrder(weights)[position]
    epoch, place = divmod(draw, len(sources[source]))
    rows = sources[source]
    return shuffled(rows, seed, source, epoch)[place] if shuffle else rows[place]


def units_of_epoch(rows, epoch, how, budget, global_batch, epoch_rows, seed):
    sizes = np.array([[len(row.input_ids)] for row in rows])
    if how == "packs":
        packs = [[rows[at] for at in places] for places in pack(sizes[:, 0].tolist(), budget)]
        return shuffled(packs, seed, epoch, 0xBA7C4)
    if how == "tokens":
        window = WINDOW * max(1, round(budget / sizes.mean()))
        cut = cut_by_tokens(sizes, order_by_length(sizes[:, 0], window), budget)
        return shuffled([[rows[at] for at in places] for places in cut], seed, epoch, 0xBA7C4)
    order = order_by_length(sizes[:, 0], WINDOW * global_batch).tolist()
    begun = -(epoch * epoch_rows) % global_batch
    steps = [order[at : at + global_batch] for at in range(begun, len(order), global_batch)]
    tail = [steps.pop()] if steps and len(steps[-1]) < global_batch else []
    places = [
        *order[:begun],
        *(at for step in shuffled(steps, seed, epoch, 0xBA7C4) for at in step),
        *(at for step in tail for at in step),
    ]
    return [[rows[at]] for at in places]


def size_of(unit, packed):
    lengths = [len(row.input_ids) for row in unit]
    return sum(lengths) if packed else len(unit) * max(lengths)


def batches(sources, weights, split, step, total, shuffle=True, seed=0, how=None, budget=0):
    """The rows of each micro-batch of a step on one rank; `how` they are put together: packs, tokens, length, None."""
    epoch_rows = sum(map(len, sources))

    def row(position):
        return FILLER if position >= total else row_at(sources, weights, seed, shuffle, position)

    first, size = step * split.global_batch, split.global_batch
    if how is None:
        units = [[row(first + at)] for at in range(size)]
        shares = [units[at : at + split.micro_batch] for at in range(0, size, split.micro_batch)]
    else:
        units = []
        for epoch in range(-(-total // epoch_rows)):
            rows = [row(at) for at in range(epoch * epoch_rows, min(total, (epoch + 1) * epoch_rows))]
            units += units_of_epoch(rows, epoch, how, budget, size, epoch_rows, seed)
        units = [*units, *([[FILLER]] * 2 * size)][first : first + size]
        ordered = sorted(units, key=lambda unit: -size_of(unit, how == "packs"))
        shares = [ordered[at : at + split.micro_batch] for at in range(0, size, split.micro_batch)]
        passes = [shares[at : at + split.world] for at in range(0, len(shares), split.world)]
        shares = [one for number, ranks in enumerate(passes) for one in (ranks[::-1] if number % 2 else ranks)]
    mine = shares[split.rank :: split.world]
    if how == "packs":
        return [[join(unit) for unit in share] for share in mine]
    return [[row for unit in share for row in unit] for share in mine]
