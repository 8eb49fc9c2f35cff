"""Causal language modelling: rows keep documents apart, and every label stands at the position that predicts it."""

from itertools import pairwise

import pytest
import torch
from datasets import Dataset
from tiny import VOCABULARY, tiny_causal, tiny_texts, tiny_tokenizer

from potstill.errors import ArgumentError, ModelError
from potstill.knowledge import Needs, observe
from potstill.tasks import CausalLM
from potstill.tasks.causal_lm import separates_documents
from potstill.tasks.packing import best_fit, pack

END = 3  # [SEP]


def tokenizer(side="right"):
    made = tiny_tokenizer(side)
    made.eos_token = "[SEP]"
    return made


def encoded(packing="documents", texts=None, max_length=32, side="right"):
    rows = Dataset.from_dict({"text": tiny_texts(30)[0] if texts is None else texts, "labels": [0] * 30})
    return CausalLM(packing).encode(rows, tokenizer(side), max_length=max_length)


def batch_of(packing, rows, side="right"):
    return CausalLM(packing).collator(tokenizer(side))(list(rows))


# ---- rows


def test_documents_are_packed_whole_and_none_is_lost():
    rows = encoded()
    assert set(rows.column_names) == {"input_ids", "position_ids", "length"}
    documents = []
    for row in rows:
        assert row["length"] == len(row["input_ids"]) == len(row["position_ids"]) <= 32
        for token, position in zip(row["input_ids"], row["position_ids"], strict=True):
            if position == 0:
                documents.append([])
            assert position == len(documents[-1])
            documents[-1].append(token)
    alone = [tokenizer()(text)["input_ids"] for text in tiny_texts(30)[0]]
    assert sorted(documents) == sorted(alone)
    assert all(ids[-1] == END and ids.count(END) == 1 for ids in documents)
    assert sum(rows["length"]) > 0.9 * 32 * len(rows)


def test_blocks_are_one_string_cut_into_rows():
    rows = encoded("blocks")
    assert set(rows.column_names) == {"input_ids", "length"}
    whole = [token for text in tiny_texts(30)[0] for token in tokenizer()(text)["input_ids"]]
    assert [token for row in rows for token in row["input_ids"]] == whole
    assert all(length == 32 for length in rows["length"][:-1])


def test_unpacked_documents_are_a_row_each_and_cut():
    rows = encoded("none", max_length=10)
    alone = [tokenizer()(text)["input_ids"][:10] for text in tiny_texts(30)[0]]
    assert list(rows["input_ids"]) == alone
    assert list(rows["length"]) == [len(ids) for ids in alone]


def test_a_long_document_is_cut_into_pieces_that_begin_anew():
    found = pack([list(range(10, 19))], 4, "documents")
    assert found["input_ids"] == [[10, 11, 12, 13], [14, 15, 16, 17]]  # one token alone predicts nothing
    assert found["position_ids"] == [[0, 1, 2, 3], [0, 1, 2, 3]]


def test_the_end_of_text_is_added_where_the_tokenizer_does_not_and_only_there():
    plain = tokenizer()
    plain.eos_token = "[UNK]"
    rows = Dataset.from_dict({"text": ["the film", ""]})
    assert CausalLM("none").encode(rows, plain, max_length=8)["input_ids"][0][-2:] == [END, plain.unk_token_id]
    plain.eos_token = "[SEP]"
    assert CausalLM("none").encode(rows, plain, max_length=8)["input_ids"][0][-2:].count(END) == 1


def test_best_fit_fills_the_fullest_row_that_has_room():
    pieces = [[1] * n for n in (3, 7, 5, 2, 3)]
    assert [[len(piece) for piece in row] for row in best_fit(pieces, 10)] == [[7, 3], [5, 3, 2]]
    assert best_fit([], 10) == []


def test_packing_and_tokenizers_that_make_no_sense_are_refused():
    with pytest.raises(ArgumentError, match="documents"):
        CausalLM("document")
    with pytest.raises(ModelError, match="end-of-text"):
        CausalLM().encode(Dataset.from_dict({"text": ["the film"]}), tiny_tokenizer(), max_length=8)
    with pytest.raises(ModelError, match="another tokenizer"):
        CausalLM().collator(tokenizer(), tokenizer())


# ---- batches


@pytest.mark.parametrize("packing", ["documents", "blocks", "none"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_label_is_the_next_token_of_the_same_document(packing, side):
    rows = list(encoded(packing, side=side))[-4:]
    batch = batch_of(packing, rows, side)
    masks = CausalLM(packing).masks(batch)
    assert "attention_mask" not in batch
    for number, row in enumerate(rows):
        ids, length = row["input_ids"], row["length"]
        positions = row.get("position_ids", list(range(length)))
        for at in range(batch["input_ids"].shape[1]):
            last = at + 1 >= length or positions[at + 1] == 0
            assert batch["labels"][number, at] == (-100 if last else ids[at + 1])
        assert masks["tokens"][number].sum() == length
    assert torch.equal(masks["labels"], batch["labels"] != -100)
    assert torch.equal(masks["outputs"], masks["labels"])
    assert masks["rows"].tolist() == [True] * 4


@pytest.mark.parametrize("packing", ["documents", "none"])
def test_the_end_of_text_is_learned_though_it_pads_too(packing):
    made = tokenizer()
    made.pad_token = made.eos_token
    rows = encoded(packing)
    batch = CausalLM(packing).collator(made)(list(rows))
    ends = sum(row["input_ids"].count(END) for row in rows)
    assert (batch["labels"] == END).sum() == ends == 30


# ---- what models make of them


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "qwen2", "qwen3"])
def test_a_packed_document_gets_the_logits_that_it_gets_alone(family, attention):
    """In a batch of several rows, whose documents begin at different places, with padding behind one of them."""
    model = tiny_causal(family, layers=2)
    model.set_attn_implementation(attention)
    assert model.config.use_cache
    rows = [row for row in encoded(max_length=40) if row["position_ids"].count(0) > 1][:3]
    rows[1] = {name: value[:-3] for name, value in rows[1].items() if name != "length"}
    packed = observe(model, batch_of("documents", rows), Needs(logits=True)).logits
    seen = 0
    for number, row in enumerate(rows):
        starts = [at for at, position in enumerate(row["position_ids"]) if position == 0] + [len(row["input_ids"])]
        for start, end in pairwise(starts):
            alone = model(input_ids=torch.tensor([row["input_ids"][start:end]])).logits[0]
            torch.testing.assert_close(packed[number, start:end], alone, rtol=1e-4, atol=1e-4)
            seen += start > 0
    assert seen >= 3


def test_padding_on_the_right_changes_no_logits_though_no_mask_is_given():
    model = tiny_causal("llama", layers=2)
    rows = list(encoded("none"))[:4]
    found = observe(model, batch_of("none", rows), Needs(logits=True)).logits
    for number, row in enumerate(rows):
        alone = model(input_ids=torch.tensor([row["input_ids"]])).logits[0]
        torch.testing.assert_close(found[number, : row["length"]], alone, rtol=1e-4, atol=1e-4)


def test_a_model_that_lets_documents_see_each_other_is_refused(monkeypatch):
    model = tiny_causal("llama", layers=2).train()
    CausalLM().check_model(model)
    assert model.training
    assert separates_documents(model)
    forward = model.model.forward
    monkeypatch.setattr(model.model, "forward", lambda position_ids=None, **given: forward(**given))
    with pytest.raises(ModelError, match="apart"):
        CausalLM().check_model(model)
    CausalLM("blocks").check_model(model)


def test_a_language_model_is_loaded_from_its_folder(tmp_path):
    tiny_causal("llama", layers=2).save_pretrained(tmp_path)
    loaded = CausalLM().load(tmp_path)
    assert not loaded.new_parameters
    assert loaded.model.config.vocab_size == VOCABULARY
