"""The history of a run: rows for the caller, for a file, for TensorBoard, and a progress bar."""

import json
import os
import sys
from pathlib import Path

FILE = "history.jsonl"


class History:
    """Rows of a training run. `rows` is the list; the same rows stand in `out`/history.jsonl.

    out: the run's folder, or None. keep_until: rows of the file up to this step are kept (a run
    that goes on), later ones are dropped. progress: True shows a bar on standard output, False
    none, None one where standard output is a terminal.
    """

    def __init__(
        self,
        out: Path | None,
        steps: int,
        *,
        keep_until: int = 0,
        progress: bool | None = None,
    ):
        self.rows: list[dict] = []
        self._file = self._board = self._bar = None
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            self.rows = _read_rows(out / FILE, keep_until)
            new = out / (FILE + ".new")
            new.write_text("".join(map(_line, self.rows)), encoding="utf-8", newline="\n")
            os.replace(new, out / FILE)
            self._file = open(out / FILE, "a", encoding="utf-8", newline="\n")
            self._board = _tensorboard(out, keep_until)
        if progress or (progress is None and sys.stdout.isatty()):
            from tqdm import tqdm

            self._bar = tqdm(
                total=steps, initial=keep_until, unit="step", file=sys.stdout, dynamic_ncols=True
            )

    def add(self, row: dict) -> None:
        """Keep a row and write it where rows go."""
        self.rows.append(row)
        if self._file is not None:
            self._file.write(_line(row))
            self._file.flush()
        if self._board is not None:
            for name, value in row.items():
                if name != "step" and value is not None:
                    self._board.add_scalar(name, value, row["step"])
        if self._bar is not None:
            shown = {"loss": f"{row['loss']:.3f}"}
            if row["bits_per_byte"] is not None:
                shown["bits/byte"] = f"{row['bits_per_byte']:.2f}"
            shown["tok/s"] = f"{row['tokens_per_second']:,.0f}"
            self._bar.set_postfix(shown, refresh=False)

    def advance(self) -> None:
        """One step is done."""
        if self._bar is not None:
            self._bar.update()

    def flush(self) -> None:
        """Put the file on the disk: a checkpoint must not know of a step that the file lacks."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flush and close; the rows stay."""
        for sink in (self._file, self._board, self._bar):
            if sink is not None:
                sink.close()


def _line(row: dict) -> str:
    return json.dumps(row) + "\n"


def _read_rows(path: Path, until: int) -> list[dict]:
    """The rows of a history file up to a step; a last line cut off by a kill is dropped."""
    if until == 0 or not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break
        if row["step"] > until:
            break
        rows.append(row)
    return rows


def _tensorboard(out: Path, keep_until: int):
    """A TensorBoard writer, where TensorBoard is installed; what it has of later steps is void."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(out / "tensorboard"), purge_step=keep_until + 1)
