"""Exercises of notebook 00: bits, and what surprises a model."""

import math

import torch
import torch.nn.functional as F

from .exercise import exercise, predict

NOTEBOOK = "00_start"


@exercise(
    notebook=NOTEBOOK,
    minutes=3,
    difficulty=1,
    hints=(
        "A fair coin: each side has probability 1/2 and costs 1 bit. Two coins: 1/4 and 2 bits.",
        "The logarithm must be the one to base 2, and its sign must make the result positive.",
    ),
)
def my_surprisal(p):
    """How surprising is something that has probability p? Surprisal in bits: -log2 p.

    p: a tensor of any shape, numbers from 0 to 1. Return a tensor of the same shape, in bits.
    Certain (p = 1) is 0 bits, a coin's side 1 bit, impossible (p = 0) infinitely many.
    """
    # solution:
    return -torch.log2(p)
    # end


@my_surprisal.checked_by
def _(surprisal, trial):
    trial.on_error = "p is a tensor: use torch's functions, which take one of any shape."
    p = torch.tensor([1.0, 0.5, 0.25, 0.125])
    sign = "probabilities are at most 1, so their logarithms are negative: turn the sign."
    mistakes = [
        (torch.log2(p), sign),
        (torch.log(p), sign),
        (-torch.log(p), "that is in nats: bits need the logarithm to base 2."),
        (-torch.log10(p), "that is to base 10: bits need the logarithm to base 2."),
        (1 / p, "1/p counts the choices; bits are the logarithm of that number."),
    ]
    want = torch.tensor([0.0, 1.0, 2.0, 3.0])
    text = "halving the probability does not add one bit"
    trial.close(surprisal(p), want, text, "it is -log2 of p.", mistakes)
    floor = "nothing may be added to p: a limit on p is a limit on the surprise."
    tiny = torch.tensor([[1e-30], [3e-12], [0.0]])
    bits = torch.tensor([[30 * math.log2(10)], [-math.log2(3e-12)], [math.inf]])
    text = "very small probabilities come out wrong (1e-30 is 99.66 bits, 0 is infinite)"
    trial.close(surprisal(tiny), bits, text, floor)
    a, b = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(0))
    text = "two independent things do not cost the sum of their bits"
    trial.close(surprisal(a * b), surprisal(a) + surprisal(b), text, "it is -log2 of p.")


@predict(
    notebook=NOTEBOOK,
    minutes=2,
    difficulty=1,
    hints=(
        "Which of them could you have guessed from what stands to the left of it?",
        "Keywords come from a list of 35, names of modules from a longer one, and text in quotes "
        "from nowhere.",
    ),
    choices={
        "import": "the first word of the file",
        "for": "the first word of the loop",
        "listdir": "what follows `os.`",
        "zebra": "what stands in quotes",
        "print": "the first word of the loop's body",
    },
    mistakes={
        "import": "files often start like that: one of the better guesses at this place.",
        "for": "a new line can start with many words, but they come from a short list.",
        "listdir": "after `os.` only the names in that module make sense: it is a good clue.",
        "print": "in a short example a loop often prints. Look for what no context gives away.",
    },
    because="Grammar and names repeat; what people put in quotes does not.",
)
def my_most_surprising():
    """A model reads this program from left to right and gives each next token a probability:

        import os

        for name in os.listdir("zebra"):
            print(name)

    Which word costs it the most bits (the sum over the word's tokens)?
    """
    from minilm import load

    text = 'import os\n\nfor name in os.listdir("zebra"):\n    print(name)\n'
    words = ["import", "for", "listdir", "zebra", "print"]
    model, tok = load("tiny")
    ids = torch.tensor([[tok.eot_id, *tok.encode(text)]])
    with torch.no_grad():
        nats = F.cross_entropy(model(ids)[0, :-1], ids[0, 1:], reduction="none")
    bits = dict.fromkeys(words, 0.0)
    start = 0
    for token, cost in zip(ids[0, 1:].tolist(), nats.tolist(), strict=True):
        end = start + len(tok.id_to_bytes(token))
        for word in words:
            if start < text.index(word) + len(word) and end > text.index(word):
                bits[word] += cost / math.log(2)
        start = end
    return max(bits, key=bits.get)
