"""The README's picture: `python -m book.cover` draws it with the shipped model.

Above: one strip through the whole model. Below: a program, each token coloured by its surprisal.
"""

from pathlib import Path

import torch

from minilm import load, plots, record

PICTURE = Path(__file__).parent / "_static" / "cover.png"
PROMPT = "class Stack:\n    def __init__(self, items):\n        self."
PROGRAM = """import os

def find(folder, suffix):
    for name in os.listdir(folder):
        if name.endswith(suffix):
            return os.path.join(folder, name)
"""


def draw():
    """A figure on white, so that it is legible on light and dark pages alike."""
    import matplotlib.pyplot as plt

    plots.style()
    model, tok = load("tiny")
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(12, 5.6), gridspec_kw={"height_ratios": (1, 0.9), "hspace": 0.25}
    )
    figure.set_facecolor("white")
    ids = tok.encode(PROMPT)
    with record(model) as r, torch.no_grad():
        p = model(torch.tensor([ids]))[0, -1].softmax(-1)
    pieces = [tok.decode([i]) for i in ids]
    vectors, attention = r.activations["embedding"][0], r.attention[1][0, 0]
    piece_of = lambda i: tok.decode([i])  # noqa: E731
    plots.pipeline(PROMPT, pieces, ids, vectors, attention, p, piece_of, int(p.argmax()), ax=top)
    ids = [tok.eot_id, *tok.encode(PROGRAM)]
    with torch.no_grad():
        log2_p = model(torch.tensor([ids]))[0].log_softmax(-1) / torch.log(torch.tensor(2.0))
    bits = [-log2_p[t - 1, ids[t]].item() for t in range(1, len(ids))]
    plots.token_strip([tok.id_to_bytes(i) for i in ids[1:]], bits, ax=bottom)
    return figure


if __name__ == "__main__":
    draw().savefig(PICTURE, dpi=90, metadata={"Software": None}, bbox_inches="tight")
    print(PICTURE)
