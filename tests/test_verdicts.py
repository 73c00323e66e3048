"""Verdicts on the papers' claims: how often they are wrong in worlds whose truth is known, what
they find, and that nothing but the paper's networks at the paper's scale is judged."""

import math
from itertools import product

import numpy as np
import pytest

from nsl_repro.results.claims import (
    NOT_RUN,
    VERDICTS,
    Gap,
    Verdict,
    corrected,
    judge_gaps,
    paper_gap,
    paper_results,
    verdict,
    verdict_rates,
)
from nsl_repro.results.intervals import Estimate, mean_estimate
from nsl_repro.results.ledger import load_ledger, new_entry
from nsl_repro.results.methods import comparison_of
from nsl_repro.results.pages import beside_the_paper
from nsl_repro.results.site import results_page
from nsl_repro.results.tables import judged_claims, paper_tables, split_ledger

RUNS = 20_000
LIMIT = 0.05 + 3 * math.sqrt(0.05 * 0.95 / RUNS)  # 5 %, and what chance adds to 20,000 runs
SIZES = (0.2, 0.35, 0.63, 0.93, 1.3)
ERRORS = (0.05, 0.36, 0.64)  # an exact paper; CIFAR-10; CIFAR-100


@pytest.mark.parametrize("redraw", [False, True], ids=["as printed", "printed anew"])
@pytest.mark.parametrize("deviation", [0.1, 0.2, 0.3, 0.5])
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_false_verdicts_are_rare(seeds, deviation, redraw):
    for size, error in product(SIZES, ERRORS):
        where = (deviation, seeds, Gap(size, error), RUNS, redraw, 1)
        none, same = verdict_rates(0.0, *where), verdict_rates(size, *where)
        assert none["reproduced"] + none["smaller than claimed"] <= LIMIT, (size, error, none)
        assert none["contradicted"] <= LIMIT, (size, error, none)
        assert same["not reproduced"] + same["contradicted"] <= LIMIT, (size, error, same)
        assert same["smaller than claimed"] <= LIMIT, (size, error, same)


@pytest.mark.parametrize("draw", ["laplace", "uniform"])
def test_false_verdicts_are_rare_for_other_seeds(draw):
    "Differences with heavy or no tails, in steps of one of 10,000 images."
    rng = np.random.default_rng(0)
    for seeds, size in product((3, 5, 10), SIZES):
        noise = {
            "laplace": lambda: rng.laplace(0, 0.2, (RUNS, seeds)),
            "uniform": lambda: rng.uniform(-0.4, 0.4, (RUNS, seeds)),
        }[draw]
        for true, wrong in ((0.0, ("reproduced",)), (size, ("not reproduced", "contradicted"))):
            d = np.round(true + noise(), 2)
            error = d.std(1, ddof=1) / math.sqrt(seeds)
            words, _ = judge_gaps(d.mean(1), error, seeds - 1, size, 0.36)
            assert np.isin(words, wrong).mean() <= LIMIT, (seeds, size, true)


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_false_verdicts_of_a_table_are_rare(seeds):
    "Five claims with one baseline, as in table 4, corrected together."
    runs, rng = 4000, np.random.default_rng(0)
    papers = paper_results("nsl_cifar", "cifar10")
    (claim,) = [c for c in papers.claims if c.id == "similarity_better"]
    gaps = [paper_gap(claim, m, papers.results) for m in claim.methods]
    sizes, errors = np.array(gaps).T
    lower = ("not reproduced", "smaller than claimed", "contradicted")
    upper = ("reproduced", "smaller than claimed", "contradicted")
    for true, wrong in ((np.zeros(5), upper), (sizes, lower)):
        plain = rng.normal(0, 0.2, (runs, seeds, 1))
        d = rng.normal(true, 0.2, (runs, seeds, 5)) - plain
        error = d.std(1, ddof=1) / math.sqrt(seeds)
        words, p = judge_gaps(d.mean(1), error, seeds - 1, sizes, errors)
        found = 0
        for table in zip(words.tolist(), p.tolist()):
            found += not set(wrong).isdisjoint(corrected([Verdict(*v) for v in zip(*table)]))
        assert found / runs <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)


def test_what_is_there_is_found():
    "The power of five seeds that deviate by 0.2 points, for the gaps of CIFAR-10."
    for size, found, refuted in ((0.63, 0.95, 0.1), (0.93, 0.98, 0.65), (1.28, 0.98, 0.95)):
        where = (0.2, 5, Gap(size, 0.36), RUNS)
        assert verdict_rates(size, *where)["reproduced"] > found
        assert verdict_rates(0.0, *where)["not reproduced"] > refuted
    less = verdict_rates(0.9, 0.1, 5, Gap(1.28, 0.1), RUNS)
    assert less["smaller than claimed"] > 0.9
    assert verdict_rates(-0.5, 0.2, 5, Gap(0.93, 0.36), RUNS)["contradicted"] > 0.9


@pytest.mark.parametrize("error", [0.0, 1e-15, math.nan])
def test_what_tells_nothing_decides_nothing(error):
    "Seeds that agree exactly, or to rounding; one seed."
    for claim in paper_results().claims:
        gap = Gap(0.93, 0.1) if claim.is_gap else None
        for mean in (-100.0, 0.0, 0.93, 100.0):
            found = verdict(Estimate(mean, error, 2), claim, "paper", gap)
            assert found == Verdict("inconclusive", 1.0), (claim.id, mean)
    assert mean_estimate([0.93]).freedom == 0
    agree = mean_estimate([61.3 - 60.3, 62.2 - 61.2, 64.7 - 63.7])  # one, but for rounding
    assert judge_gaps(*agree, 0.93, 0.1)[0] == "inconclusive"


def test_no_claim_is_judged_by_its_mean():
    "49 ± 40 reproduces nothing, and a precise miss is a miss in nearly all cases."
    rng = np.random.default_rng(0)
    for claim in paper_results("nsl_fewshot").claims:
        if claim.is_gap:
            continue
        middle = (claim.at_least + claim.at_most) / 2
        assert verdict(Estimate(middle, 14.4, 4), claim, "paper").word == "inconclusive"
        far = claim.at_most + 1.0
        samples = rng.normal(far, 0.3, (400, 5))
        words = [verdict(mean_estimate(s), claim, "paper").word for s in samples]
        assert words.count("not reproduced") > 390 and "reproduced" not in words


def entries(preset="paper", variant="paper", seeds=5, **more):
    found = []
    for method, level in (("cnn", 92.2), ("dynamic_dns", 93.2)):
        for seed in range(seeds):
            parameters = {"recipe": "clean", "variant": variant, **more}
            if variant is None:
                del parameters["variant"]
            shift = 0.02 * seed * len(method)
            found.append(
                new_entry(
                    experiment="nsl_cifar",
                    dataset="cifar10",
                    method=method,
                    preset=preset,
                    seed=seed,
                    parameters=parameters,
                    metrics={"test_accuracy": level + shift},
                    curves={},
                    wall_time_s=1.0,
                    device="cpu",
                )
            )
    return found


def words_of(runs):
    return {one.words for one in judged_claims(runs) if one.method == "dynamic_dns"} - {
        NOT_RUN.word
    }


def test_only_the_papers_networks_at_its_scale_are_judged():
    assert words_of(entries()) == {"reproduced"}
    for other in (
        entries("small"),
        entries(variant="released"),
        entries(variant=None),
        entries(complete=False),
    ):
        assert not words_of(other)
    assert len(split_ledger([*entries(), *entries(variant=None)])) == 2
    assert len(split_ledger([*entries(), *entries(recipe="as_released")])) == 2


def test_pages_without_any_run():
    tables = paper_tables([])
    assert [t.name for t in tables] == [f"table {n}" for n in (1, 2, 3, 4, 4, 5, 6, 8)]
    assert all(t.group is None for t in tables)
    assert "there is no verdict" in beside_the_paper([]) and "93.15" in results_page([])
    told = beside_the_paper(entries())
    assert "24 comparisons, 1 of them run" in told and "1 reproduced" in told


def test_the_papers_figures():
    "Every claim about a gap has its two figures, and an uncertainty; no review is quoted."
    papers = paper_results()
    for claim in papers.claims:
        assert claim.tag != "review"
        if claim.is_gap:
            gaps = [paper_gap(claim, m, papers.results) for m in claim.methods]
            assert all(gap.size and gap.error > 0 for gap in gaps)
            assert claim.variant == "paper"
    figures = {(r.dataset, r.method): r.value for r in papers.results if r.table == "table 4"}
    assert figures["cifar10", "dynamic_uns"] == 93.5 and figures["cifar100", "cnn"] == 71.05


def test_the_ledgers_tables_hold_runs_of_the_papers_networks_only():
    for table in paper_tables(load_ledger()):
        for e in table.group or []:
            told = comparison_of(e.experiment).absent | e.parameters  # SphereNet-9 has one variant
            assert told["variant"] == "paper" and e.preset != "smoke"


def test_verdicts_have_the_names_that_pages_explain():
    rates = verdict_rates(0.3, 0.2, 5, Gap(0.93, 0.36), 2000)
    assert tuple(rates) == VERDICTS and sum(rates.values()) == pytest.approx(1)
