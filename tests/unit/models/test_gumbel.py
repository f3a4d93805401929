"""The noise is uniform and independent, the same wherever it is computed; draws follow the softmax."""

import numpy as np
import pytest
import torch

from scaleup.models.gumbel import GumbelMax, exponentials, hashes

CPU = torch.device("cpu")
MASK = 2**64 - 1


def by_hand(seed: int, position: int, token: int) -> float:
    """SplitMix64 in Python's own integers."""

    def mixed(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
        return x ^ (x >> 31)

    step = 0x9E3779B97F4A7C15
    key = mixed((mixed((seed + step) & MASK) + (position + 1) * step) & MASK)
    return ((mixed((key + (token + 1) * step) & MASK) >> 11) + 0.5) / 2**53


def uniforms(seeds: torch.Tensor, position: int, size: int) -> torch.Tensor:
    return hashes(seeds, position, size).double().add(0.5).mul(2.0**-53)


def seeds(count: int) -> torch.Tensor:
    return GumbelMax.seeded([(5, row) for row in range(count)], CPU).seeds


def test_the_numbers_are_those_of_unsigned_integers() -> None:
    some = torch.tensor([0, 1, -1, 2**62, -(2**63)])
    for position in (0, 1, 4095):
        drawn = uniforms(some, position, 300)
        assert drawn[:, 299].tolist() == [by_hand(seed & MASK, position, 299) for seed in some.tolist()]
    assert uniforms(some[1:2], 7, 1).tolist() == [[by_hand(1, 7, 0)]]


@pytest.mark.parametrize("of", ["tokens", "positions", "responses"])
def test_uniform_in_each_direction(of: str) -> None:
    """Chi-square over 64 bins of 40 streams or more: its mean over them is 63 with a deviation of 1.8 or less, and none
    is far off."""
    if of == "tokens":
        streams = uniforms(seeds(40), 3, 20_000)
    elif of == "positions":
        streams = torch.stack([uniforms(seeds(200), position, 1)[:, 0] for position in range(1_600)]).T
    else:
        streams = uniforms(seeds(8_000), 3, 40).T
    counts = torch.stack([torch.histc(stream, 64, 0, 1) for stream in streams])
    due = streams.shape[1] / 64
    chi = ((counts - due) ** 2 / due).sum(dim=1)
    assert abs(float(chi.mean()) - 63) < 6
    assert float(chi.max()) < 63 + 6 * 11.2


def test_neighbours_are_independent() -> None:
    """Correlations of 1.2 million pairs are 0.001 deviations; seeds, positions and ids differ by 1 or a little."""
    plain = torch.arange(6)  # not even the seeds are mixed
    noise = torch.stack([uniforms(plain, position, 40_000) for position in range(6)]) - 0.5  # (T, B, V)
    pairs = [(noise[1:], noise[:-1]), (noise[:, 1:], noise[:, :-1])]
    pairs += [(noise[..., lag:], noise[..., :-lag]) for lag in (1, 2, 64)]
    pairs.append((noise[1:, 1:], noise[:-1, :-1]))
    for one, other in pairs:
        assert abs(float((one * other).mean() * 12)) < 0.006


def test_no_stream_is_another_one_shifted() -> None:
    """As streams would be whose seed and position enter linearly."""
    known = set(uniforms(torch.arange(50), 0, 2_000).flatten().tolist())
    others = uniforms(torch.arange(50), 1, 2_000).flatten().tolist()
    assert len(known) == len(set(others)) == 100_000
    assert not known & set(others)


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_frequencies_are_the_probabilities(temperature: float) -> None:
    """A hundred thousand draws from one distribution, with a token that cannot come: over rows, and over positions."""
    scores = torch.tensor([[0.3, -1.0, float("-inf"), 1.2, 0.0]])
    wanted = torch.softmax(scores[0] / temperature, -1)
    count = 100_000
    draw = GumbelMax(torch.arange(count), temperature)
    over_rows = draw(scores.expand(count, 5), torch.arange(count), 0)
    over_positions = torch.cat([draw(scores.expand(100, 5), torch.arange(100), at) for at in range(1_000)])
    for chosen in (over_rows, over_positions):
        counted = torch.bincount(chosen, minlength=5) / count
        assert counted[2] == 0
        assert torch.allclose(counted, wanted, atol=0.006)


def test_a_row_is_drawn_alike_in_any_batch() -> None:
    scores = torch.randn(9, 500, generator=torch.Generator().manual_seed(0))
    draw = GumbelMax.seeded([(3, row) for row in range(9)], CPU)
    whole = draw(scores, torch.arange(9), 4)
    for rows in ([0], [7, 2], [8, 0, 1, 3]):
        kept = torch.tensor(rows)
        assert torch.equal(draw(scores[kept], kept, 4), whole[kept])
        alone = GumbelMax.seeded([(3, row) for row in rows], CPU)
        assert torch.equal(alone(scores[kept], torch.arange(len(rows)), 4), whole[kept])
    assert not torch.equal(draw(scores, torch.arange(9), 5), whole)


def test_near_scores_draw_the_same_tokens() -> None:
    """Other rounding of the scores, by 1e-5, parts one draw in thousands."""
    generator = torch.Generator().manual_seed(0)
    scores = 3 * torch.randn(4_000, 1_000, generator=generator)
    near = scores + 1e-5 * torch.randn(scores.shape, generator=generator)
    draw, rows = GumbelMax(torch.arange(4_000)), torch.arange(4_000)
    assert int((draw(scores, rows, 0) != draw(near, rows, 0)).sum()) <= 2


def test_seeds_of_several_numbers_all_count() -> None:
    drawn = GumbelMax.seeded([(0, 1), (1, 0), (0, 0, 1), (2**31, 7), (0, 1)], CPU).seeds.tolist()
    assert drawn[0] == drawn[-1]
    assert len(set(drawn)) == 4
    words = np.array(drawn, dtype=np.int64).view(np.uint64)
    assert (words > 2**32).all()


def test_the_exponentials_are_those_of_float64() -> None:
    """To float32's own precision where they are small, which is where tokens are drawn."""
    wanted = -uniforms(seeds(20), 3, 50_000).log()
    found = exponentials(seeds(20), 3, 50_000).double()
    assert float(((found - wanted) / wanted)[wanted < 10].abs().max()) < 1e-3
    assert float(((found - wanted) / wanted)[wanted < 1].abs().max()) < 3e-7
    assert bool(torch.isfinite(found).all())
