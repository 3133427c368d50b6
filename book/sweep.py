"""A sweep of configurations as tables: what one change did, against the configuration in the middle.

A sweep is a results file whose rows hold a configuration as their shape. The row that differs in the
fewest settings from all others is the reference. Rows that differ from each other in the seed alone
are one configuration, and their spread is the noise that every difference has to be read against.
"""

import statistics
from collections import defaultdict
from pathlib import Path

from minilm import bench

from .measured import FOLDERS, escape, number, origin, table

SEED = "seed"
COUNTED = ("steps", "tokens", "params", "parameters")  # what follows from a configuration
MOST_CHANGES = 3  # a table of one setting shows rows with up to so many settings changed
# A setting may stand in a file under its name in the code or under its letter.
SAME = {
    "position": "pos",
    "vocab_size": "V",
    "context_length": "T",
    "batch_size": "B",
    "d_model": "C",
    "n_layers": "L",
    "n_heads": "H",
    "n_kv_heads": "kv",
    "qk_norm": "qk",
    "weight_decay": "wd",
    "warmup": "warm",
    "min_lr": "minlr",
}

Config = tuple[tuple[str, object], ...]


def sweep_files(op: str, folders: tuple[Path, ...] = FOLDERS) -> list[Path]:
    """The results files that hold a row of `op`."""
    paths = sorted(p for folder in folders for p in folder.glob("*.json"))
    return [p for p in paths if any(r["op"] == op for r in bench.read_results(p)["rows"])]


def configurations(rows: list[dict]) -> dict[Config, list[float]]:
    """Configuration → its values, one for each seed, in the order of the file."""
    found = defaultdict(list)
    for row in rows:
        settings = {SAME.get(k, k): v for k, v in row["shape"].items()}
        kept = sorted((k, v) for k, v in settings.items() if k not in (SEED, *COUNTED))
        found[tuple(kept)].append(row["value"])
    return dict(found)


def changes(config: Config, reference: Config) -> dict[str, object]:
    """The settings in which `config` differs, with its values (None: not given)."""
    ours, theirs = dict(config), dict(reference)
    names = sorted(set(ours) | set(theirs))
    return {name: ours.get(name) for name in names if ours.get(name) != theirs.get(name)}


def reference_of(found: dict[Config, list[float]]) -> Config:
    """The configuration with the fewest changes to all others; of equals the one with most seeds."""
    return min(found, key=lambda c: (sum(len(changes(o, c)) for o in found), -len(found[c])))


def noise(found: dict[Config, list[float]]) -> float | None:
    """Standard deviation over seeds, all configurations with several seeds together."""
    groups = [values for values in found.values() if len(values) > 1]
    if not groups:
        return None
    squares = sum(statistics.variance(values) * (len(values) - 1) for values in groups)
    return (squares / sum(len(values) - 1 for values in groups)) ** 0.5


def setting_table(found: dict[Config, list[float]], setting: str) -> str:
    """What changing `setting` did: the reference first, then the changes, the fewest others first."""
    setting = SAME.get(setting, setting)
    reference = reference_of(found)
    base = statistics.mean(found[reference])
    rows = [(0, "", base, reference, found[reference])]
    for config, values in found.items():
        changed = changes(config, reference)
        if setting in changed and len(changed) <= MOST_CHANGES:
            others = ", ".join(f"{k} {number(v)}" for k, v in changed.items() if k != setting)
            rows.append((len(changed), others, statistics.mean(values), config, values))
    if len(rows) == 1:
        return f"The file has no row in which `{setting}` is another than in the reference.\n"
    return table(
        [
            {
                setting: escape(number(dict(config).get(setting))) + (" (reference)" if n == 0 else ""),
                "also changed": escape(others),
                "bits per byte": f"{mean:.3f}",
                "difference": f"{mean - base:+.3f}" if n else "",
                "seeds": str(len(values)),
            }
            for n, others, mean, config, values in sorted(rows, key=lambda r: (r[0], r[1], r[2]))
        ]
    )


def tables(op: str, settings: list[str], folders: tuple[Path, ...] = FOLDERS) -> str:
    """A table for each setting, of the first file that holds rows of `op`; else a sentence."""
    paths = sweep_files(op, folders)
    if not paths:
        return f"*The file with the results of `{op}` is not in this checkout, so there is no table.*\n"
    results = bench.read_results(paths[0])
    found = configurations([row for row in results["rows"] if row["op"] == op])
    return "\n".join(setting_table(found, setting) + "\n" for setting in settings)


def summary(op: str, folders: tuple[Path, ...] = FOLDERS) -> str:
    """How many runs, where and when, the reference, the noise, and the best configuration."""
    paths = sweep_files(op, folders)
    if not paths:
        return f"*The file with the results of `{op}` is not in this checkout: no figures here.*\n"
    results = bench.read_results(paths[0])
    found = configurations([row for row in results["rows"] if row["op"] == op])
    reference = reference_of(found)
    best = min(found, key=lambda c: statistics.mean(found[c]))
    spread = noise(found)
    settings = ", ".join(f"{k} {number(v)}" for k, v in reference)
    better = ", ".join(f"{k} {number(v)}" for k, v in changes(best, reference).items())
    lines = [
        f"{sum(map(len, found.values()))} runs on one {escape(results['device'])}. {origin(results)}",
        f"Reference: {escape(settings)}: {statistics.mean(found[reference]):.3f} bits per byte.",
        f"Best: {escape(better) or 'the reference'}: {statistics.mean(found[best]):.3f}.",
    ]
    if spread is not None:
        lines.append(f"Standard deviation between seeds: {spread:.3f} bits per byte.")
    return "\n".join(f"- {line}" for line in lines) + "\n"
