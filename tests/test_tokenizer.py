"""Merges and ids equal to Hugging Face `tokenizers`, on the plain and on the compiled path."""

import pickle
import random
import threading

import numpy as np
import pytest
import tiktoken

from minilm import coder, encoder, plain, tokenizer
from minilm.bench_tokenizer import corpus_prefix, train_hugging_face
from minilm.patterns import PATTERNS
from minilm.tokenizer import Tokenizer

EOT = "<|endoftext|>"
ALPHABET = list("  \n\t'''sSlLrRe 123 aab.!") * 3 + list("ſé\u3000漢字кА٣½😀\u0301")
TEXTS = ["the cat sat on the mat\n", "the hat, the bat's 1234 naïve 漢字 😀\n"] * 3


@pytest.fixture(params=["plain", "compiled"])
def path(request, monkeypatch):
    """All inputs, also the smallest, go one way."""
    size = 1 << 40 if request.param == "plain" else -1
    for module in (tokenizer, coder):  # of merges, and of ids
        monkeypatch.setattr(module, "PLAIN_BYTES", size)
    monkeypatch.setattr(coder, "SMALL_BYTES", size)
    return request.param


both_patterns = pytest.mark.parametrize("pattern", list(PATTERNS))


def same_file(tok: Tokenizer, peer) -> bool:
    return tok.to_json() == peer.to_str(pretty=True).encode("utf-8")


def random_texts(n: int, seed: int, longest: int = 60) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices(ALPHABET, k=rng.randint(0, longest))) for _ in range(n)]


# Training


@both_patterns
@pytest.mark.parametrize("vocab_size", [512, 4096])
def test_merges_on_source_code_are_hugging_faces(path, pattern, vocab_size):
    texts = corpus_prefix(1_000_000)
    tok = Tokenizer.train(texts, vocab_size, pattern=pattern)
    assert tok.vocab_size == vocab_size
    assert same_file(tok, train_hugging_face(texts, vocab_size, pattern=pattern))


def test_merges_on_corpora_full_of_ties_are_hugging_faces(path):
    """Few letters, many equal counts; special tokens that are spelled like merges, which then take
    the special token's id; a least frequency."""
    rng = random.Random(0)
    for k in range(150):
        letters = "abcd"[: rng.randint(1, 4)]
        words = ["".join(rng.choices(letters, k=rng.randint(1, 12))) for _ in range(20)]
        texts = [" ".join(words[:7]), "\n".join(words[7:])]
        names = ["".join(rng.choices(letters, k=rng.randint(1, 4))) for _ in range(k % 4)]
        options = {
            "special_tokens": list(dict.fromkeys(names)),
            "pattern": rng.choice(list(PATTERNS)),
            "min_frequency": rng.choice([0, 2, 3]),
        }
        vocab_size = 260 + rng.randint(0, 60)
        tok = Tokenizer.train(texts, vocab_size, **options)
        assert same_file(tok, train_hugging_face(texts, vocab_size, **options)), (texts, options)


@both_patterns
def test_merges_on_random_unicode_are_hugging_faces(path, pattern):
    texts = random_texts(300, seed=1)
    names = [EOT, "<é>", "the", "漢"]
    tok = Tokenizer.train(texts, 400, names, pattern)
    assert same_file(tok, train_hugging_face(texts, 400, names, pattern))


def test_a_merge_that_spells_a_special_token_takes_its_id(path):
    tok = Tokenizer.train(["the the the"] * 3, 260, special_tokens=("the",))
    assert tok.special_tokens == {"the": 0}
    assert (b"t", b"he") in tok.merges or (b"th", b"e") in tok.merges
    assert tok.encode("the", allowed_special="none") == [0]
    assert tok.decode([0]) == "the"


def test_training_takes_any_iterable_once(path):
    texts = random_texts(50, seed=2)
    whole = Tokenizer.train(texts, 300)
    assert Tokenizer.train((text for text in texts), 300).sha256() == whole.sha256()
    assert Tokenizer.train([text.encode() for text in texts], 300).sha256() == whole.sha256()
    assert Tokenizer.train([*texts, "", ""], 300).sha256() == whole.sha256()


def test_training_in_batches_changes_nothing(monkeypatch):
    texts = random_texts(300, seed=3)
    whole = Tokenizer.train(texts, 350)
    monkeypatch.setattr(coder, "BATCH_BYTES", 1000)
    monkeypatch.setattr(tokenizer, "PLAIN_BYTES", -1)
    assert Tokenizer.train(texts, 350).to_json() == whole.to_json()


def test_vocabulary_is_smaller_when_the_pairs_run_out(path):
    assert Tokenizer.train(["ab"], 1000).vocab_size == 258
    assert Tokenizer.train(["ab"], 257).merges == []
    assert Tokenizer.train(["ab"], 10**30, min_frequency=10**30).merges == []
    assert Tokenizer.train(["ab"], 10**30, min_frequency=-1).merges == [(b"a", b"b")]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((["a"], 256), ValueError, "vocab_size: must be at least 257.*got 256"),
        ((["a"], 2.5), TypeError, "vocab_size: must be a whole number, got 2.5"),
        (([], 300), ValueError, "texts: must hold some text"),
        ((["", b""], 300), ValueError, "texts: must hold some text"),
        (("one text", 300), TypeError, "texts: must be an iterable of texts"),
        ((["a", 3], 300), TypeError, "texts: must hold str, got int at place 1"),
        ((["a"], 300, "<s>"), TypeError, "special_tokens: must be several str"),
        ((["a"], 300, ["<s>", "<s>"]), ValueError, "special_tokens: must differ, got '<s>' twice"),
        ((["a"], 300, [""]), ValueError, "special_tokens: must be str and not empty"),
        ((["a"], 300, ["\ud800"]), ValueError, "special_tokens: must be text"),
        ((["a"], 300, [], "gpt5"), ValueError, "pattern: must be 'gpt2' or 'gpt4', got 'gpt5'"),
        ((["a"], 300, ["é"]), ValueError, "special_tokens: 'é' is how .* choose another"),
    ],
)
def test_bad_arguments_of_training(arguments, error, message):
    with pytest.raises(error, match=message):
        Tokenizer.train(*arguments)


# Encoding


@pytest.fixture(scope="module", params=list(PATTERNS))
def trained(request):
    """A tokenizer, and Hugging Face's and tiktoken's with the same vocabulary."""
    texts = corpus_prefix(300_000) + random_texts(300, seed=4)
    tok = Tokenizer.train(texts, 2048, (EOT, "<|fim|>", "<|fim|>2"), request.param)
    peer = train_hugging_face(texts, 2048, (EOT, "<|fim|>", "<|fim|>2"), request.param)
    ranks = {tok.id_to_bytes(k): k for k in range(tok.vocab_size) if k not in tok.special_ids}
    regex = PATTERNS[request.param].regex
    third = tiktoken.Encoding(
        "ours", pat_str=regex, mergeable_ranks=ranks, special_tokens=tok.special_tokens
    )
    return tok, peer, third


def test_ids_are_those_of_hugging_face_and_tiktoken(trained, path):
    tok, peer, third = trained
    texts = corpus_prefix(400_000)[-20:] + random_texts(1500, seed=5)
    texts += [char * n for char in "a é漢=\n1" for n in (1, 2, 63, 64, 65, 66, 300)]
    for text in texts:
        ids = tok.encode(text)
        assert ids == peer.encode(text).ids, repr(text)
        assert ids == third.encode_ordinary(text), repr(text)
        assert tok.decode(ids) == text


def test_special_tokens_are_found_as_hugging_face_does(trained, path):
    tok, peer, _ = trained
    rng = random.Random(6)
    parts = [EOT, "<|fim|>", "<|fim|>2", "<|", "|>", " ", "\n", "a", "é", "  ", "<|fim|"]
    for _ in range(300):
        text = "".join(rng.choices(parts, k=rng.randint(0, 12)))
        assert tok.encode(text) == peer.encode(text).ids, repr(text)
        assert tok.decode(tok.encode(text)) == text


def test_special_tokens_are_text_unless_allowed(trained, path):
    tok, _, third = trained
    plain_ids = third.encode_ordinary
    text = f"a{EOT}<|fim|>2 b<|fim|>"
    end, fim, fim2 = (tok.special_tokens[name] for name in (EOT, "<|fim|>", "<|fim|>2"))
    assert tok.encode(text, "none") == tok.encode(text, set()) == plain_ids(text)
    assert tok.encode(text, {EOT}) == [*plain_ids("a"), end, *plain_ids("<|fim|>2 b<|fim|>")]
    with_fim = [*plain_ids(f"a{EOT}"), fim, *plain_ids("2 b"), fim]
    assert tok.encode(text, ["<|fim|>"]) == with_fim
    assert tok.encode(text) == [*plain_ids("a"), end, fim2, *plain_ids(" b"), fim]  # the longest
    with pytest.raises(ValueError, match="allowed_special: must be among .* got '<s>'"):
        tok.encode(text, allowed_special={"<s>"})
    with pytest.raises(ValueError, match='allowed_special: must be "all", "none" or a set'):
        tok.encode(text, allowed_special="some")


def test_many_texts_in_one_array(trained, path):
    tok, peer, _ = trained
    texts = ["", *random_texts(200, seed=7), f"{EOT}a{EOT}{EOT}", "", EOT, "b", ""]
    for allowed in ("all", "none"):
        ids, offsets = tok.encode_array(iter(texts), allowed_special=allowed)
        assert (ids.dtype, offsets.dtype, len(offsets)) == (np.int32, np.int64, len(texts) + 1)
        found = [ids[a:b].tolist() for a, b in zip(offsets[:-1], offsets[1:], strict=True)]
        assert found == [tok.encode(text, allowed_special=allowed) for text in texts]
    assert found != [peer.encode(text).ids for text in texts]  # "none" is the default
    ids, offsets = tok.encode_array(texts)
    assert found == [ids[a:b].tolist() for a, b in zip(offsets[:-1], offsets[1:], strict=True)]
    ids, offsets = tok.encode_array([])
    assert (ids.tolist(), offsets.tolist(), ids.dtype) == ([], [0], np.int32)
    with pytest.raises(TypeError, match="texts: must be an iterable of texts"):
        tok.encode_array("text")


def test_batches_of_an_array_are_joined(trained, path, monkeypatch):
    tok, _, _ = trained
    texts = random_texts(100, seed=8)
    ids, offsets = tok.encode_array(texts)
    monkeypatch.setattr(coder, "BATCH_BYTES", 100)
    again, offsets_again = tok.encode_array(texts)
    assert ids.tolist() == again.tolist() and offsets.tolist() == offsets_again.tolist()


def test_any_bytes_come_back(trained, path):
    tok, _, _ = trained
    rng = random.Random(9)
    for _ in range(200):
        data = rng.randbytes(rng.randint(0, 60))
        assert tok.decode_bytes(tok.encode(data)) == data
    assert tok.encode("naïve 漢".encode()) == tok.encode("naïve 漢")


def test_bytes_that_are_no_utf8_are_symbols_and_shown_as_replacement(trained, path):
    tok, _, _ = trained
    data = b"ab\xff\xfecd \xe6\xbc"  # a cut-off character at the end
    assert tok.split(data)[:1] == [b"ab"]
    assert tok.decode(tok.encode(data)) == data.decode("utf-8", errors="replace")


def test_lone_surrogates_are_their_three_bytes(trained, path):
    tok, _, _ = trained
    text = "a\ud800b\udcff"
    assert tok.encode(text) == tok.encode(b"a\xed\xa0\x80b\xed\xb3\xbf")
    assert tok.decode(tok.encode(text)) == "a\ufffd\ufffd\ufffdb\ufffd\ufffd\ufffd"


def test_long_runs_of_one_character_are_no_trouble(trained, path):
    """Quadratic time would be minutes: 10^5 characters in one piece."""
    tok, peer, _ = trained
    text = "a" * 100_000
    assert tok.encode(text) == peer.encode(text).ids


def test_empty_text_and_wrong_types(trained, path):
    tok, _, _ = trained
    assert tok.encode("") == tok.encode(b"") == []
    assert tok.decode([]) == "" and tok.decode_bytes([]) == b""
    with pytest.raises(TypeError, match="text: must be str or bytes, got list"):
        tok.encode(["a"])
    for ids, k in (([0, -1], 1), ([2048], 0), ([0, 1, 99999], 2)):
        with pytest.raises(ValueError, match=f"ids: must be tokens, 0 to 2047.*at place {k}"):
            tok.decode(ids)


def test_forgetting_words_changes_no_id(trained, monkeypatch):
    tok, _, _ = trained
    texts = random_texts(300, seed=10)
    expected = [tok.encode(text, "none") for text in texts]
    monkeypatch.setattr(coder, "PLAIN_BYTES", -1)
    monkeypatch.setattr(coder, "SMALL_BYTES", -1)
    monkeypatch.setattr(encoder, "MAX_WORDS", 20)
    assert [tok.encode(text, "none") for text in texts] == expected
    monkeypatch.setattr(plain, "CACHE_PIECES", 5)
    fresh = pickle.loads(pickle.dumps(tok))
    assert [fresh._coder._encode_plain(text, frozenset()) for text in texts] == expected
    assert len(fresh._coder._plain.cache) <= 5


def test_threads_do_not_mix_their_ids(trained, monkeypatch):
    tok, _, _ = trained
    monkeypatch.setattr(coder, "SMALL_BYTES", -1)
    texts = [" ".join(random_texts(50, seed=seed)) for seed in range(20)]
    expected = [tok._coder._encode_plain(text, frozenset()) for text in texts]
    wrong = []

    def work(order):
        for k in order:
            if tok.encode(texts[k], "none") != expected[k]:
                wrong.append(k)

    orders = [random.Random(seed).sample(range(20), 20) * 3 for seed in range(4)]
    threads = [threading.Thread(target=work, args=(order,)) for order in orders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# The object


def test_names_and_numbers_of_a_tokenizer():
    tok = Tokenizer.train(TEXTS, 270, special_tokens=("<s>", EOT))
    assert tok.special_tokens == {"<s>": 0, EOT: 1}
    assert (tok.special_ids, tok.eot_id, tok.vocab_size) == ({0, 1}, 1, 270)
    assert tok.pattern == "gpt4"
    assert tok.id_to_bytes(0) == b"<s>" and tok.id_to_bytes(2) == b"!"
    made = {left + right for left, right in tok.merges}
    assert made == {tok.id_to_bytes(k) for k in range(258, 270)}
    assert b"".join(tok.split(TEXTS[1])) == TEXTS[1].encode()
    assert (
        repr(tok) == f"Tokenizer(vocab_size=270, pattern='gpt4', special_tokens=['<s>', '{EOT}'])"
    )
    assert Tokenizer.train(TEXTS, 270, special_tokens=()).eot_id is None


def test_decoding_takes_arrays_and_tensors():
    torch = pytest.importorskip("torch")
    tok = Tokenizer.train(TEXTS, 300)
    ids = tok.encode(TEXTS[1])
    for form in (np.array(ids), torch.tensor(ids), iter(ids), tuple(ids)):
        assert tok.decode(form) == TEXTS[1]


def test_hash_is_that_of_the_ids():
    one, two = Tokenizer.train(TEXTS, 280), Tokenizer.train(TEXTS, 280)
    assert one.sha256() == two.sha256()
    for other in (
        Tokenizer.train(TEXTS, 281),
        Tokenizer.train(TEXTS, 280, special_tokens=()),
        Tokenizer.train(TEXTS, 280, pattern="gpt2"),
    ):
        assert other.sha256() != one.sha256()


def test_a_tokenizer_can_be_sent_to_another_process():
    tok = Tokenizer.train(TEXTS, 300)
    copy = pickle.loads(pickle.dumps(tok))
    assert copy.encode(TEXTS[1]) == tok.encode(TEXTS[1])
    assert copy.sha256() == tok.sha256()
