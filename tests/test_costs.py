"""What the README says of costs: means where there are runs, and one run where there is one."""

import re

from conftest import ROOT

from nsl_repro.results.ledger import load_published
from nsl_repro.results.pages import speed_table, step_table


def test_one_run_is_not_called_a_mean():
    ledger = load_published(ROOT / "data")
    for table in (speed_table(ledger), step_table(ledger)):
        for row in table.rows:
            for cell in filter(None, row[2:]):
                assert ("±" in cell) != cell.endswith(" (one run)"), row
    measured = {tuple(row[:2]): row[-1] for row in speed_table(ledger).rows}
    assert re.fullmatch(r"\d+\.\d\d \(one run\)", measured["DNS", "cpu"])
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"| {measured['DNS', 'cpu']} |" in text
    assert "each figure is a mean over runs, except where it says that there was one" in " ".join(
        text.split()
    )
