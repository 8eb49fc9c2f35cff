"""The vocabulary cut: the same tokens by other numbers, the same outputs, and what was never seen is still spelt."""

import json
from functools import cache

import pytest
import torch
import transformers
from tiny import tiny_model, tiny_texts, tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from potstill.errors import ModelError
from potstill.knowledge import inputs_for
from potstill.students import Vocabulary, cut_tokenizer, cut_vocabulary, special_ids

KNOWN = tiny_texts(60)[0]
ODD = ["Hamburgers quiver zealously over 42 jumping dogs!", "façade Κόσμος 漢字 🙂", "unbelievable performances"]
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
BYTES = [f"<0x{number:02X}>" for number in range(256)]


def trained(model, trainer, pre):
    """The model part of a tokenizer.json, trained on texts of which only a part is used later."""
    tokenizer = Tokenizer(model)
    if pre is not None:
        tokenizer.pre_tokenizer = pre
    tokenizer.train_from_iterator(KNOWN + ODD * 20, trainer(show_progress=False, vocab_size=600))
    return json.loads(tokenizer.to_str())["model"]


@cache
def wordpiece():
    def trainer(**options):
        return trainers.WordPieceTrainer(special_tokens=BERT, **options)

    return trained(models.WordPiece(unk_token="[UNK]"), trainer, pre_tokenizers.BertPreTokenizer())


@cache
def bpe():
    def trainer(**options):
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        return trainers.BpeTrainer(special_tokens=ROBERTA, initial_alphabet=alphabet, **options)

    found = trained(models.BPE(), trainer, pre_tokenizers.ByteLevel(add_prefix_space=False))
    return {"vocab": found["vocab"], "merges": [tuple(merge) for merge in found["merges"]]}


@cache
def unigram():
    def trainer(**options):
        return trainers.UnigramTrainer(special_tokens=ROBERTA, unk_token="<unk>", **options)

    split = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    return [tuple(piece) for piece in trained(models.Unigram(), trainer, split)["vocab"]]


def camembert():
    first = [("<s>NOTUSED", 0.0), ("<pad>", 0.0), ("</s>NOTUSED", 0.0), ("<unk>", 0.0), ("<unk>NOTUSED", -100.0)]
    return transformers.CamembertTokenizer(
        vocab=[*first, *(piece for piece in unigram() if piece[0] not in ("<pad>", "<unk>", "<mask>"))]
    )


def mpnet():
    tokens = [*ROBERTA, *(token for token in wordpiece()["vocab"] if token not in BERT), "[UNK]"]
    return transformers.MPNetTokenizer(vocab={token: number for number, token in enumerate(tokens)})


def llama():
    """Whole texts as one word, spaces as ▁, bytes for what is unknown: as Llama 2 has it."""

    def trainer(**options):
        return trainers.BpeTrainer(special_tokens=[*ROBERTA, *BYTES], max_token_length=8, **options)

    found = trained(models.BPE(), trainer, pre_tokenizers.Metaspace(prepend_scheme="first"))
    merges = [tuple(merge) for merge in found["merges"]]
    model = models.BPE(found["vocab"], merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    made = Tokenizer(model)
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 0)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )


def template_of_sequences():
    """RobertaProcessing inside a sequence, and an added token that is no special one."""
    made = Tokenizer(models.BPE(**bpe()))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    roberta = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    made.post_processor = processors.Sequence([roberta, processors.ByteLevel()])
    made.add_tokens(["zebra"])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", pad_token="<pad>")


KINDS = {
    "bert": lambda: transformers.BertTokenizer(vocab=wordpiece()["vocab"]),
    "distilbert": lambda: transformers.DistilBertTokenizer(vocab=wordpiece()["vocab"]),
    "mpnet": mpnet,
    "roberta": lambda: transformers.RobertaTokenizer(**bpe()),
    "gpt2": lambda: transformers.GPT2Tokenizer(**bpe(), pad_token="<pad>"),
    "qwen2": lambda: transformers.Qwen2Tokenizer(**bpe()),
    "xlm-roberta": lambda: transformers.XLMRobertaTokenizer(vocab=unigram()),
    "t5": lambda: transformers.T5Tokenizer(vocab=unigram()),
    "camembert": camembert,
    "llama": llama,
    "a sequence of processors": template_of_sequences,
    "whole words": tiny_tokenizer,
}
ONE_WORD_A_TOKEN = "whole words"


@pytest.fixture(scope="module", params=KINDS, ids=list(KINDS))
def cut(request):
    tokenizer = KINDS[request.param]()
    tokenizer.model_max_length = 48
    return request.param, tokenizer, cut_tokenizer(tokenizer, KNOWN[:40])


def test_known_texts_become_the_same_tokens_by_new_numbers(cut):
    _, before, made = cut
    after = made.tokenizer
    assert len(after) == len(made.kept) < len(before)
    for text, pair in zip(KNOWN[:40], reversed(KNOWN[:40]), strict=True):
        for given in ((text,), (text, pair)):
            old, new = before(*given), after(*given)
            assert after.convert_ids_to_tokens(new["input_ids"]) == before.convert_ids_to_tokens(old["input_ids"])
            assert [made.new_ids[one] for one in old["input_ids"]] == new["input_ids"]
            assert {k: v for k, v in old.items() if k != "input_ids"} == {
                k: v for k, v in new.items() if k != "input_ids"
            }


def test_special_tokens_are_the_same_by_new_numbers(cut):
    _, before, made = cut
    after = made.tokenizer
    assert after.all_special_tokens == before.all_special_tokens
    assert after.all_special_ids == [made.new_ids[one] for one in before.all_special_ids]
    assert (after.padding_side, after.model_max_length) == (before.padding_side, before.model_max_length)
    assert after.pad_token_id == made.new_ids[before.pad_token_id]


def test_what_was_never_seen_is_spelt(cut):
    kind, before, made = cut
    for text in ("Hamburgers quiver zealously", "unbelievable 42 performances"):
        tokens, whole = made.tokenizer.tokenize(text), before.tokenize(text)
        if kind == ONE_WORD_A_TOKEN:
            assert set(tokens) == {"[UNK]"}
        else:
            assert made.tokenizer.unk_token not in tokens and len(tokens) > len(whole)
            bare = [
                "".join(t.replace("##", "").replace("Ġ", "").replace("▁", "") for t in one) for one in (tokens, whole)
            ]
            assert bare[0] == bare[1]


def test_a_saved_folder_gives_the_same_tokenizer(cut, tmp_path):
    _, _, made = cut
    made.tokenizer.save_pretrained(tmp_path)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert again.get_vocab() == made.tokenizer.get_vocab()
    for text in KNOWN[:5] + ODD:
        assert again(text)["input_ids"] == made.tokenizer(text)["input_ids"]


def test_the_tokenizer_is_left_as_it_was():
    tokenizer = KINDS["bert"]()
    before = tokenizer.backend_tokenizer.to_str(), tokenizer.get_vocab()
    cut_tokenizer(tokenizer, KNOWN)
    assert (tokenizer.backend_tokenizer.to_str(), tokenizer.get_vocab()) == before


def family_of(kind):
    return (
        kind if kind in ("bert", "distilbert", "mpnet", "roberta", "gpt2", "qwen2", "xlm-roberta", "llama") else "bert"
    )


def test_the_cut_model_gives_the_very_same_outputs(cut, tmp_path):
    kind, before, made = cut
    family = family_of(kind)
    config = tiny_model(family, layers=1).config
    config.vocab_size = len(before) + 3  # rows of padding, as many models have
    config.pad_token_id = before.pad_token_id
    for name in ("bos_token_id", "eos_token_id"):
        if getattr(config, name, None) is not None:
            setattr(config, name, getattr(before, name))
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    student = cut_vocabulary(model, made)
    assert student.config.vocab_size == len(made.kept) and student.config.pad_token_id == made.tokenizer.pad_token_id
    student.save_pretrained(tmp_path)
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    old = before(KNOWN[:8], padding=True, truncation=True, return_tensors="pt")
    new = made.tokenizer(KNOWN[:8], padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        wanted = model(**inputs_for(model, old)).logits
        assert torch.equal(student(**inputs_for(student, new)).logits, wanted)
        assert torch.equal(again(**inputs_for(again, new)).logits, wanted)
    assert (model.config.vocab_size, model.config.pad_token_id) == (len(before) + 3, before.pad_token_id)


def test_an_output_layer_over_words_is_cut_with_the_embeddings():
    tokenizer = KINDS["bert"]()
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=len(tokenizer), **sizes)
    model = transformers.BertForMaskedLM(config).eval()
    torch.nn.init.normal_(model.cls.predictions.bias)
    made = cut_tokenizer(tokenizer, KNOWN)
    student = cut_vocabulary(model, made)
    with torch.no_grad():
        theirs = model(**tokenizer(KNOWN[0], return_tensors="pt")).logits[..., list(made.kept)]
        torch.testing.assert_close(student(**made.tokenizer(KNOWN[0], return_tensors="pt")).logits, theirs)
    tied = student.cls.predictions.decoder.weight
    assert tied.data_ptr() == student.get_input_embeddings().weight.data_ptr() and len(tied) == len(made.kept)


def test_rare_tokens_go_with_a_higher_count():
    tokenizer = KINDS["bert"]()
    counted = [*["good film"] * 5, "lovely plot"]
    all_of_them, often = (cut_tokenizer(tokenizer, counted, minimum_count=n).tokenizer for n in (1, 2))
    assert {"lovely", "film"} <= all_of_them.get_vocab().keys()
    assert "film" in often.get_vocab() and "lovely" not in often.get_vocab()
    assert often.tokenize("lovely")[0] == "l"


def test_merges_stay_with_all_that_they_are_made_of():
    tokenizer = KINDS["roberta"]()
    made = cut_tokenizer(tokenizer, KNOWN[:40]).tokenizer
    model = json.loads(made.backend_tokenizer.to_str())["model"]
    assert model["merges"] and len(model["merges"]) < len(
        json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    )
    for first, second in model["merges"]:
        assert {first, second, first + second} <= model["vocab"].keys()
    reachable = set(pre_tokenizers.ByteLevel.alphabet()) | {first + second for first, second in model["merges"]}
    assert set(model["vocab"]) - reachable == set(ROBERTA)


def test_the_piece_of_the_lowest_score_stays_since_unknown_characters_are_scored_by_it():
    tokenizer = KINDS["xlm-roberta"]()
    pieces = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["vocab"]
    lowest = min(pieces, key=lambda piece: piece[1])[0]
    assert lowest in cut_tokenizer(tokenizer, ["the film"]).tokenizer.get_vocab()


def test_ids_that_a_config_names_stay_and_lost_ones_are_refused():
    tokenizer = KINDS["bert"]()
    unused = next(one for one in range(len(tokenizer)) if one not in cut_tokenizer(tokenizer, KNOWN).kept)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    model = transformers.BertModel(transformers.BertConfig(vocab_size=len(tokenizer), **sizes))
    model.config.eos_token_id = [unused, 3]
    model.config.bos_token_id = 10**6  # never was a token
    assert special_ids(model.config) >= {0, 3, unused}
    kept = cut_tokenizer(tokenizer, KNOWN, keep=special_ids(model.config))
    student = cut_vocabulary(model, kept)
    assert student.config.eos_token_id == [kept.new_ids[unused], 3]
    assert student.config.bos_token_id is None
    with pytest.raises(ModelError, match=r"eos_token_id.*keep=special_ids"):
        cut_vocabulary(model, cut_tokenizer(tokenizer, KNOWN))


def test_what_does_not_fit_is_said():
    made = cut_tokenizer(KINDS["roberta"](), KNOWN)
    with pytest.raises(ModelError, match="more tokens than the model"):
        cut_vocabulary(tiny_model("roberta", layers=1), made)
    moved = Vocabulary(made.tokenizer, (1, 0, 2, 3), made.before)
    with pytest.raises(ModelError, match="counts positions from the padding token's id"):
        cut_vocabulary(tiny_model("roberta", layers=1, pad_token_id=1), moved)


def test_what_stands_before_a_small_padding_id_stays_so_that_it_stays_too():
    tokens = ["never", "[UNK]", "seen", "[PAD]", "[CLS]", "[SEP]", "[MASK]", "nowhere", *"film", "film"]
    tokenizer = transformers.BertTokenizer(vocab={token: number for number, token in enumerate(tokens)})
    made = cut_tokenizer(tokenizer, ["film"])
    assert made.kept[:4] == (0, 1, 2, 3) and made.tokenizer.pad_token_id == 3
    assert "nowhere" not in made.tokenizer.get_vocab()


def test_slow_and_unknown_tokenizers_are_refused():
    class Slow:
        is_fast = False

    with pytest.raises(ModelError, match="Only a fast tokenizer"):
        cut_tokenizer(Slow(), KNOWN)


def test_a_tokenizer_that_would_read_otherwise_is_refused(monkeypatch):
    tokenizer = KINDS["bert"]()
    other = cut_tokenizer(tokenizer, ["good"]).tokenizer
    monkeypatch.setattr("potstill.students.vocabulary._rewritten", lambda *_: other)
    with pytest.raises(ModelError, match="in another way"):
        cut_tokenizer(tokenizer, KNOWN)
