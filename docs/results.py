"""The page of results, drawn from the ledger."""
from itertools import groupby

from nsl_repro.results import claims_table, comparison_table, load_ledger, split_ledger


def results_page() -> str:
    "Every experiment that has runs in the ledger, in Markdown: the methods compared, and the papers' claims beside what was found."
    parts = [
        "# Results",
        "Drawn from the ledger in `data/results` when this page was built. *Paper* is the paper's figure with its evidence; *ours* is the mean with the"
        " 95 % interval over seeds. The preset says at which scale: only `paper` can decide a claim.",
    ]
    ledger = split_ledger([e for e in load_ledger() if not e.experiment.endswith(("_lr", "_tuning"))])
    for experiment, groups in groupby(sorted(ledger.items()), key=lambda item: item[0][0]):
        parts.append(f"## {experiment}")
        for (_, dataset, preset, variant), entries in groups:
            parts.append(f"### {dataset}, {preset}" + (f", {variant}" if variant else ""))
            try:
                parts.append(comparison_table(entries).to_markdown())
                claims = claims_table(entries)
                if claims.rows:
                    parts.append(claims.to_markdown())
            except ValueError as error:
                parts.append(f"No table: {error}")
    return "\n\n".join(parts) + "\n"
