"""Intervals are those of the textbook, and hold what they promise."""

from __future__ import annotations

import numpy as np
import pytest

from textleak.reports.statistics import ENOUGH, FEW_IN_WORDS, bootstrap_mean, bootstrap_means


def test_agrees_with_scipy_where_values_are_independent():
    from scipy import stats

    values = np.random.default_rng(3).beta(2, 1, size=60)
    ours = bootstrap_mean(values, range(60))
    theirs = stats.bootstrap(
        (values,), np.mean, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    assert ours.mean == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.004)


def test_two_values_give_the_three_means_that_can_be_drawn():
    from scipy import stats

    # 0 and 1 draw the means 0, 1/2, 1 with chances 1/4, 1/2, 1/4: both ends lie in the outer quarters.
    interval = bootstrap_mean([0.0, 1.0], ["a", "b"])
    assert (interval.low, interval.mean, interval.high) == (0.0, 0.5, 1.0)
    # Of ten values the lowest mean that 2.5 % stay below: 9 or 10 of 10 zeros are drawn seldom enough.
    tenth = bootstrap_mean([1.0] + [0.0] * 9, range(10))
    assert tenth.high == pytest.approx(stats.binom(10, 0.1).ppf(0.975) / 10)


def test_one_cluster_has_no_interval():
    interval = bootstrap_mean([0.2, 0.4], ["same", "same"])
    assert (interval.mean, interval.low, interval.high) == (pytest.approx(0.3), None, None)
    assert (interval.count, interval.clusters) == (2, 1)


def test_repeating_what_a_cluster_says_tells_nothing_new():
    values = np.random.default_rng(1).random(12)
    once = bootstrap_mean(values, range(12))
    fivefold = bootstrap_mean(np.repeat(values, 5), np.repeat(range(12), 5).tolist())
    assert (fivefold.low, fivefold.high) == pytest.approx((once.low, once.high))


def test_clusters_of_unequal_size_count_by_their_values():
    interval = bootstrap_mean([1.0, 0.0, 0.0, 0.0], ["a", "b", "b", "b"])
    assert interval.mean == 0.25  # and not 1/2, the mean of the clusters' means
    assert (interval.low, interval.high) == (0.0, 1.0)


def test_figures_see_the_same_draws():
    values = np.random.default_rng(2).random((30, 1))
    both = bootstrap_means(np.hstack([values, 1 - values]), range(30))
    assert both[1].low == pytest.approx(1 - both[0].high)
    assert both[1].high == pytest.approx(1 - both[0].low)


def test_the_seed_decides_the_draws_and_blocks_of_them_do_not(monkeypatch):
    from textleak.reports import statistics

    values = np.random.default_rng(5).random(25)
    first = bootstrap_mean(values, range(25))
    assert bootstrap_mean(values, range(25)) == first
    assert bootstrap_mean(values, range(25), seed=1) != first
    monkeypatch.setattr(statistics, "_COUNTS_AT_ONCE", 1000)
    monkeypatch.setattr(statistics, "_COUNTS_KEPT", 0)
    assert bootstrap_mean(values, range(25)) == first


def test_intervals_cover_the_true_mean_as_often_as_they_say():
    draw = np.random.default_rng(11)
    repetitions, held = 400, 0
    for repetition in range(repetitions):
        interval = bootstrap_mean(draw.beta(1, 3, size=50), range(50), seed=repetition, resamples=500)
        held += interval.low <= 0.25 <= interval.high
    # 95 % within three standard errors of 400 trials, less the point that 50 values cost the percentile method.
    assert 0.90 <= held / repetitions <= 0.985


@pytest.mark.parametrize(("clusters", "held_in_words"), [(2, 0.50), (3, 0.75), (5, 0.85), (ENOUGH, 0.90)])
def test_intervals_of_few_cover_as_little_as_readers_are_told(clusters, held_in_words):
    draw = np.random.default_rng(13)
    repetitions, held = 1000, 0
    for repetition in range(repetitions):
        interval = bootstrap_mean(
            draw.beta(0.8, 1.2, size=clusters), range(clusters), seed=repetition, resamples=500
        )
        held += interval.low <= 0.4 <= interval.high
    assert held / repetitions == pytest.approx(held_in_words, abs=0.03)
    assert f"{100 * held_in_words:.0f} % with {clusters}" in FEW_IN_WORDS


def test_intervals_of_dependent_sentences_cover_too_and_would_not_if_they_were_drawn_one_by_one():
    draw = np.random.default_rng(12)
    repetitions, together, one_by_one = 300, 0, 0
    for repetition in range(repetitions):
        batches = draw.normal(size=(40, 1)) + 0.3 * draw.normal(size=(40, 8))
        values, clusters = batches.ravel(), np.repeat(range(40), 8).tolist()
        right = bootstrap_mean(values, clusters, seed=repetition, resamples=500)
        wrong = bootstrap_mean(values, range(320), seed=repetition, resamples=500)
        together += right.low <= 0 <= right.high
        one_by_one += wrong.low <= 0 <= wrong.high
    assert together / repetitions > 0.89
    assert one_by_one / repetitions < 0.7
