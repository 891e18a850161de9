"""The strings of tokens, of made-up vocabularies and of real ones: what a person reads."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from moe_core.runs import open_run
from moe_core.watching import watch
from moe_core.watching.pieces import LONGEST, strings_of


def trained(kind: str) -> Tokenizer:
    """A real BPE, of a few sentences."""
    text = ["the cat sat on the mat\n", "el niño comió piñones\n", "猫は座った 🙂\n"] * 20
    one = Tokenizer(models.BPE(byte_fallback=kind == "signs", unk_token="<unk>" if kind == "signs" else None))
    if kind == "bytes":
        one.pre_tokenizer, one.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<pad>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)  # fmt: skip
    else:
        one.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<pad>", "<unk>", *(f"<0x{b:02X}>" for b in range(256))], limit_alphabet=40, show_progress=False)  # fmt: skip
    one.train_from_iterator(text, trainer)
    return one


def fast(kind: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=trained(kind), pad_token="<pad>")


@pytest.mark.parametrize("kind", ["bytes", "signs"])
def test_pieces_of_a_real_tokenizer_read_as_text(kind: str) -> None:
    text, tokenizer = "the cat sat, el niño\n", fast(kind)
    ids = tokenizer([text], add_special_tokens=False)["input_ids"][0]
    assert len(ids) > 4
    # A letter of which each byte is a token of its own is shown as its bytes.
    whole = "".join(strings_of(ids, tokenizer)).replace(" ", "", kind == "signs")
    assert (
        whole.encode().decode("unicode_escape").encode("latin-1").decode() == text if "\\x" in whole else whole == text
    )


def test_part_of_a_letter_is_shown_as_its_bytes() -> None:
    tokenizer = fast("bytes")
    ids = tokenizer(["the 龘"], add_special_tokens=False)["input_ids"][0]
    assert "".join(strings_of(ids, tokenizer)) == "the \\xe9\\xbe\\x98"


def test_a_real_tokenizer_and_a_real_model(tmp_path: Path) -> None:
    from tests.watching.families import SMALL, build

    assert SMALL["vocab_size"] == 64  # fewer than the tokenizer's ids, which are brought into it
    tokenizer, model = fast("bytes"), build("mixtral")
    model.resize_token_embeddings(len(tokenizer))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    live = watch(model, "a", optimizer=optimizer, runs=tmp_path, probe=["the cat", "el niño sat on\n"], tokenizer=tokenizer, probe_every=2)  # fmt: skip
    for seed in range(4):
        ids = torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(seed))
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        live.step()
    live.close()
    run = open_run(live.path)
    assert "".join(run.labels["token"][n] for n in run.probe()["tokens"]) == "the catel niño sat on\n"
    assert run.snapshots("choices").tolist() == [2, 4]


@pytest.mark.parametrize(
    ("pieces", "texts"),
    [
        (["Ġthe", "ĊĊ", "Ã©", "<|im_start|>"], [" the", "\n\n", "é", "<|im_start|>"]),
        (["▁the", "Ã©", "<0x0A>", "<0xE9>"], [" the", "Ã©", "\n", "\\xe9"]),
        (["the", "##ing"], ["the", "##ing"]),
        ([b"\xc3\xa9", None, "Ġa", "▁"], ["é", "", "Ġa", " "]),
        (["a" * 999, "\ud800"], ["a" * (LONGEST - 1) + "…", "?"]),
    ],
)  # fmt: skip
def test_signs_for_spaces_and_bytes_are_read(pieces: list[Any], texts: list[str]) -> None:
    tokenizer = type("T", (), {"convert_ids_to_tokens": lambda self, ids: [pieces[i] for i in ids]})()
    assert strings_of(range(len(pieces)), tokenizer) == texts


def test_a_tokenizer_that_only_decodes(tmp_path: Path) -> None:
    tokenizer = type("T", (), {"decode": lambda self, ids: f"<{ids[0]}>"})()
    assert strings_of([3, 4], tokenizer) == ["<3>", "<4>"]


def test_letters_of_a_byte_level_tokenizer_are_whole_in_a_text_without_a_space() -> None:
    tokenizer = fast("bytes")
    ids = tokenizer("niño", add_special_tokens=False)["input_ids"]
    assert "".join(strings_of(ids, tokenizer)) == "niño"
