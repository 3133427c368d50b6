"""tokenizer.json: read and written as Hugging Face does, and what a bad file gets."""

import copy
import json
import random

import pytest
import tokenizers

from minilm import tokenizer_json
from minilm.bench_tokenizer import corpus_prefix, train_hugging_face
from minilm.patterns import GPT4, PATTERNS
from minilm.tokenizer import Tokenizer

EOT = "<|endoftext|>"
TEXT = "the cat's hat\n\n  1234 naïve 漢字 😀\t"


@pytest.fixture(scope="module")
def document() -> dict:
    """A good file, as an object."""
    tok = Tokenizer.train([TEXT * 3], 280, special_tokens=(EOT, "the"))
    return json.loads(tok.to_json())


def load(document: dict, folder) -> Tokenizer:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return Tokenizer.load(path)


@pytest.mark.parametrize("pattern", list(PATTERNS))
def test_hugging_face_reads_our_file_and_writes_it_again_byte_for_byte(pattern, tmp_path):
    texts = corpus_prefix(100_000)
    tok = Tokenizer.train(texts, 600, (EOT, "<é>", "the"), pattern)
    tok.save(tmp_path / "ours.json")
    peer = tokenizers.Tokenizer.from_file(str(tmp_path / "ours.json"))
    peer.save(str(tmp_path / "theirs.json"))
    assert (tmp_path / "ours.json").read_bytes() == (tmp_path / "theirs.json").read_bytes()
    for text in (*texts[:5], TEXT, f"a{EOT}the<é>"):
        assert tok.encode(text) == peer.encode(text).ids
        assert tok.decode(tok.encode(text)) == text


@pytest.mark.parametrize("pattern", list(PATTERNS))
def test_we_read_hugging_faces_file_and_write_it_again_byte_for_byte(pattern, tmp_path):
    texts = corpus_prefix(100_000)
    train_hugging_face(texts, 600, (EOT, "the"), pattern).save(str(tmp_path / "theirs.json"))
    tok = Tokenizer.load(tmp_path / "theirs.json")
    assert tok.to_json() == (tmp_path / "theirs.json").read_bytes()
    assert tok.sha256() == Tokenizer.train(texts, 600, (EOT, "the"), pattern).sha256()


def test_tokens_added_later_have_the_same_ids(tmp_path):
    """Added tokens stand behind the vocabulary and are not in the model's own table."""
    peer = train_hugging_face([TEXT * 3], 280, ())
    peer.add_special_tokens([EOT, "<|fim|>"])
    peer.add_tokens(["plain"])
    peer.save(str(tmp_path / "tokenizer.json"))
    tok = Tokenizer.load(tmp_path / "tokenizer.json")
    n = peer.get_vocab_size()
    assert tok.special_tokens == {EOT: n - 3, "<|fim|>": n - 2, "plain": n - 1}
    tok.save(tmp_path / "again.json")
    again = tokenizers.Tokenizer.from_file(str(tmp_path / "again.json"))
    for text in (f"{TEXT}{EOT}the<|fim|>plain", "plain", EOT * 2):
        ids = peer.encode(text).ids
        assert tok.encode(text) == ids == again.encode(text).ids
        assert tok.decode(ids) == text


def test_merges_as_one_text_of_older_files(document, tmp_path):
    older = copy.deepcopy(document)
    older["model"]["merges"] = [" ".join(pair) for pair in document["model"]["merges"]]
    assert load(older, tmp_path).sha256() == load(document, tmp_path).sha256()


def test_llama_3_spelling_and_whole_words(document, tmp_path):
    """`ignore_merges`: a piece that is a token is that token, whatever the merges say."""
    file = copy.deepcopy(document)
    file["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = GPT4.spellings[0]
    file["model"]["ignore_merges"] = True
    file["model"]["vocab"]["Ġqqq"] = 280
    tok = load(file, tmp_path)
    peer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in (TEXT, "a qqq qq", " qqq" * 1000):
        ids = tok.encode(text)
        assert ids == peer.encode(text).ids == tok.encode_array([text])[0].tolist()
    parts = [b"a", b" qqq", b" qq"]
    assert tok._coder._encode_parts(parts)[0].tolist() == tok.encode("a qqq qq", "none")
    assert 280 in tok.encode("a qqq")
    assert 280 not in load(document, tmp_path).encode("a qqq")


def test_gpt2_file_without_use_regex(document, tmp_path):
    file = copy.deepcopy(document)
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    file["pre_tokenizer"], file["post_processor"] = level, level
    tok = load(file, tmp_path)
    assert tok.pattern == "gpt2"
    peer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tok.encode(TEXT) == peer.encode(TEXT).ids


def change(*path):
    """Set one field of a document: the last argument is the value."""
    *fields, last, value = path

    def apply(document):
        for field in fields:
            document = document[field]
        document[last] = value

    return apply


def drop(*path):
    *fields, last = path

    def apply(document):
        for field in fields:
            document = document[field]
        del document[last]

    return apply


SPLIT = ("pre_tokenizer", "pretokenizers", 0)
LEVEL = ("pre_tokenizer", "pretokenizers", 1)
BAD = [
    (change("model", "type", "Unigram"), "model.type must be 'BPE'"),
    (drop("model"), "model must be an object"),
    (drop("model", "merges"), "model.type must be 'BPE' with vocab and merges"),
    (change("model", "vocab", []), "model.vocab must be an object"),
    (change("model", "vocab", "a", "x"), r"model.vocab\['a'\] must be a whole number"),
    (change("model", "vocab", "a", True), r"model.vocab\['a'\] must be a whole number"),
    (change("model", "vocab", "a", -1), r"model.vocab\['a'\] must be an id from 0"),
    (change("model", "vocab", "a", 10**12), r"model.vocab\['a'\] must be an id from 0"),
    (change("model", "vocab", "a", 3), "model.vocab must give each token an id of its own"),
    (drop("model", "vocab", "Ġ"), "model.vocab must have all 256 bytes, 'Ġ' is missing"),
    (change("model", "merges", {}), "model.merges must be a list"),
    (change("model", "merges", 2, ["a"]), r"model.merges\[2\] must be two tokens"),
    (change("model", "merges", 2, "a b c"), r"model.merges\[2\] must be two tokens"),
    (change("model", "merges", 2, ["a", 7]), r"model.merges\[2\] must be two tokens"),
    (change("model", "merges", 2, ["a", "zzz"]), r"model.merges\[2\] needs 'zzz'"),
    (change("model", "merges", 2, ["z", "q"]), r"model.merges\[2\] needs 'zq'"),
    (change("model", "dropout", 0.1), "model.dropout must be null"),
    (change("model", "end_of_word_suffix", "</w>"), "model.end_of_word_suffix must be null"),
    (change("normalizer", {"type": "NFC"}), "normalizer must be null"),
    (change("truncation", {"max_length": 5}), "truncation must be null"),
    (change("post_processor", {"type": "TemplateProcessing"}), "post_processor must be ByteLevel"),
    (change("decoder", {"type": "WordPiece"}), "decoder must be ByteLevel"),
    (change("pre_tokenizer", None), "pre_tokenizer must be an object"),
    (change("pre_tokenizer", {"type": "Whitespace"}), "pre_tokenizer must be ByteLevel or Split"),
    (change(*LEVEL, "add_prefix_space", True), "add_prefix_space must be false"),
    (change(*LEVEL, "use_regex", True), "use_regex must be false after a Split"),
    (change(*SPLIT, "pattern", {"Regex": r"\w+"}), "pattern must be the split of gpt2 or gpt4"),
    (change(*SPLIT, "pattern", {"String": " "}), "pattern must be the split of gpt2 or gpt4"),
    (change(*SPLIT, "behavior", "Removed"), "behavior must be Isolated"),
    (change("added_tokens", {}), None),
    (change("added_tokens", 0, "x"), r"added_tokens\[0\] must be an object"),
    (change("added_tokens", 0, "id", 5), r"added_tokens\[0\].id must be the id of"),
    (change("added_tokens", 0, "content", "new"), r"added_tokens\[0\].id must be the id of 'new'"),
    (change("added_tokens", 1, "content", EOT), r"added_tokens\[1\].content must be a new token"),
    (change("added_tokens", 0, "lstrip", True), r"added_tokens\[0\].lstrip must be false"),
]


@pytest.mark.parametrize(("damage", "message"), BAD, ids=[str(m)[:50] for _, m in BAD])
def test_a_bad_file_is_one_sentence_with_file_and_field(damage, message, document, tmp_path):
    file = copy.deepcopy(document)
    damage(file)
    if message is None:  # an empty object is as good as no added tokens
        assert load(file, tmp_path).special_tokens == {}
        return
    with pytest.raises(ValueError, match=message) as caught:
        load(file, tmp_path)
    assert "tokenizer.json" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [0, 1, 100, 5000, -10])
def test_a_truncated_file(kept, document, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(json.dumps(document).encode()[:kept])
    with pytest.raises(ValueError, match="tokenizer.json: is not a tokenizer.json"):
        Tokenizer.load(path)


@pytest.mark.parametrize(
    "data",
    [b"\xff\xfe", b"[" * 100_000, b'{"model": ' * 5000, b"[1]", b"1" * 10_000, b'"text"', b"null"],
    ids=["no utf8", "deep list", "deep object", "list", "number", "text", "null"],
)
def test_a_file_that_is_something_else(data, tmp_path):
    path = tmp_path / "other.json"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="other.json"):
        Tokenizer.load(path)


def test_random_damage_never_gets_another_error(document, tmp_path):
    """Any value of the file replaced by any other: it loads, or the error names the file."""
    rng = random.Random(0)
    values = [None, True, -1, 0.5, 10**30, "", "a b", "\ud800", [], [[]], {}, {"type": "BPE"}]
    refused = 0
    for _ in range(400):
        file = copy.deepcopy(document)
        holder, key = {"file": file}, "file"
        while isinstance(holder[key], dict | list) and holder[key] and rng.random() < 0.8:
            holder = holder[key]
            key = (
                rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
            )
        if key == "file":
            continue
        holder[key] = rng.choice(values)
        try:
            load(file, tmp_path)
        except ValueError as error:
            assert "tokenizer.json: " in str(error)
            refused += 1
    assert refused > 100


def test_a_file_that_is_too_large_is_not_read(document, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer_json, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match="bytes, a tokenizer.json may have 1,000"):
        load(document, tmp_path)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no tokenizer file"):
        Tokenizer.load(tmp_path / "missing.json")
    with pytest.raises(FileNotFoundError, match="there is no tokenizer file"):
        Tokenizer.load(tmp_path)


def test_saving_is_whole_or_not_at_all(document, tmp_path, monkeypatch):
    tok = load(document, tmp_path)
    path = tmp_path / "tokenizer.json"
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("minilm.tokenizer.os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        tok.save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["tokenizer.json"]


def test_saving_where_there_is_no_folder(document, tmp_path):
    with pytest.raises(FileNotFoundError):
        load(document, tmp_path).save(tmp_path / "missing" / "tokenizer.json")
