"""A vocabulary cut to what the data uses: the tokenizer rewritten, and the rows of the model's embeddings kept with it.

In a small encoder half of the parameters are the embeddings of words that its users never write. Decisions held here:

- A token that occurs in the given texts stays, and so do special and added tokens, and single characters and bytes, so
  that words never seen are still spelt. A tokenizer of whole words has no spelling: new words stay unknown to it.
- Byte-pair merges stay with all that they are made of, down to the characters: a merge that takes part in making a kept
  token is kept. A merge that made nothing in the texts can go without a trace, since the one of lowest rank is always
  the one that is made.
- A Unigram model keeps its piece of the lowest score, since the score of unknown characters is reckoned from it.
- So the given texts become the same tokens as before, by other numbers, and the model gives the very same outputs for
  them. That is checked on the texts after the rewriting.
- Tokens keep their order, and those up to the padding token's id stay, where it is small: the RoBERTa family counts
  its positions from that id.
"""

import copy
import json
import re
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from potstill.checks import problem
from potstill.errors import ModelError
from potstill.knowledge.architectures import cast

BATCH = 1000  # texts that are tokenised at once
CHECKED = 2000  # texts whose tokens are compared before and after
SMALL = 16  # a padding id below this, and all before it, stay what they are
BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


@dataclass(frozen=True)
class Vocabulary:
    """A cut vocabulary.

    Args:
        tokenizer: the one that knows it.
        kept: the old id of each of its tokens, in the order of their new ids.
        before: the tokenizer that it was cut from.
    """

    tokenizer: PreTrainedTokenizerBase
    kept: tuple[int, ...]
    before: PreTrainedTokenizerBase

    @property
    def new_ids(self) -> dict[int, int]:
        """Old id -> new id."""
        return {old: new for new, old in enumerate(self.kept)}


def special_ids(config: Any) -> set[int]:
    """The ids of special tokens that a model's config names: ``pad_token_id`` and its like."""
    return {one for _, ids in _named_ids(config) for one in (ids if isinstance(ids, list) else [ids])}


def _named_ids(config: Any) -> Iterator[tuple[str, int | list[int]]]:
    for name, value in config.to_dict().items():
        if name.endswith("_token_id") and value is not None:
            yield name, value


def cut_tokenizer(
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    *,
    minimum_count: int = 1,
    keep: Collection[int] = (),
) -> Vocabulary:
    """A tokenizer of the same kind that knows only the tokens of `texts`, and how to spell the rest.

    Args:
        tokenizer: a fast one, of WordPiece, BPE, Unigram or whole words; left as it was.
        texts: whose tokens are kept; read twice, so a list or a column.
        minimum_count: how often a token must occur in them. Above 1, texts with rarer tokens are spelt differently.
        keep: ids to keep whatever the texts: `special_ids` of the model's config.

    Raises:
        ModelError: a tokenizer without a ``tokenizer.json``, or of another kind; one that doesn't read the texts as
            before once it is rewritten.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            problem(
                "Only a fast tokenizer's vocabulary can be cut",
                given=type(tokenizer).__name__,
                follows="What a slow one does stands in its code, and not in a tokenizer.json that could be rewritten",
                do="Leave out vocabulary, or use a model whose folder has a tokenizer.json",
            )
        )
    data = json.loads(tokenizer.backend_tokenizer.to_str())
    known = _model_ids(data["model"])
    ids: dict[str, int] = {**known, **{token["content"]: int(token["id"]) for token in data["added_tokens"]}}
    counts = _counts(tokenizer, texts, max(ids.values()) + 1)
    pad = tokenizer.pad_token_id
    fixed = {*tokenizer.all_special_ids, *keep, *(range(pad) if pad is not None and pad < SMALL else ())}
    used = {token for token, number in ids.items() if counts[number] >= minimum_count or number in fixed}
    used |= {token["content"] for token in data["added_tokens"]}
    used |= {token for place, key in _named(data["post_processor"]) for token in _tokens(place, key)}
    kept = _needed(data["model"], used)
    order = sorted(kept, key=lambda token: (token not in known, ids[token]))  # what only was added comes last
    made = Vocabulary(_rewritten(tokenizer, data, order), tuple(ids[token] for token in order), tokenizer)
    if minimum_count == 1:
        _require_same_tokens(tokenizer, made.tokenizer, texts)
    return made


def _model_ids(model: dict[str, Any]) -> dict[str, int]:
    """token -> id of a model in a tokenizer.json."""
    if model["type"] not in ("WordPiece", "WordLevel", "BPE", "Unigram"):
        raise ModelError(problem("The vocabulary of this kind of tokenizer can't be cut", given=model["type"]))
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        return {token: int(number) for token, number in vocab.items()}
    return {token: number for number, (token, _score) in enumerate(vocab)}


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(texts)
    while batch := list(islice(rest, BATCH)):
        yield batch


def _counts(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], size: int) -> np.ndarray[Any, Any]:
    """How often each id occurs in the whole texts, however they are truncated later: [V]."""
    found = np.zeros(size, dtype=np.int64)
    for batch in _batches(texts):
        ids = tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]
        found += np.bincount(np.fromiter(chain.from_iterable(ids), np.int64), minlength=size)
    return found


def _needed(model: dict[str, Any], used: set[str]) -> set[str]:
    """The used tokens, and whatever the model needs to spell and to make them."""
    known = _model_ids(model)
    kept = {*used, *([model["unk_token"]] if model.get("unk_token") else [])}
    if model["type"] == "WordLevel":
        return kept
    prefix, suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    for token in known:
        bare = token.removeprefix(prefix) if token != prefix else token
        if len(bare.removesuffix(suffix) if bare != suffix else bare) == 1 or BYTE.fullmatch(token):
            kept.add(token)
    if model["type"] == "Unigram":
        kept.add(min(model["vocab"], key=lambda piece: piece[1])[0])
        kept.add(model["vocab"][model["unk_id"] or 0][0])
    if model["type"] == "BPE":
        made_of: dict[str, list[str]] = {}
        for first, second in _merges(model):
            made_of.setdefault(first + second.removeprefix(prefix), []).extend((first, second))
        waiting = list(kept)
        while waiting:
            parts = set(made_of.get(waiting.pop(), ())) - kept
            kept |= parts
            waiting.extend(parts)
    return kept


def _merges(model: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The merges in their order; older files have each as one text."""
    for merge in model["merges"]:
        first, second = merge.split(" ", 1) if isinstance(merge, str) else merge
        yield first, second


def _rewritten(tokenizer: PreTrainedTokenizerBase, data: dict[str, Any], order: Sequence[str]) -> Any:
    """The tokenizer that the rewritten files give, loaded as its users will load it."""
    new = {token: number for number, token in enumerate(order)}
    model = data["model"]
    before = _model_ids(model)
    if model["type"] == "Unigram":
        pieces = {token: [token, score] for token, score in model["vocab"]}
        if model["unk_id"] is not None:
            model["unk_id"] = new[model["vocab"][model["unk_id"]][0]]
        model["vocab"] = [pieces[token] for token in order if token in before]
    else:
        model["vocab"] = {token: new[token] for token in order if token in before}
    if model["type"] == "BPE":
        prefix = model.get("continuing_subword_prefix") or ""
        model["merges"] = [
            [first, second]
            for first, second in _merges(model)
            if {first, second, first + second.removeprefix(prefix)} <= new.keys()
        ]
    for token in data["added_tokens"]:
        token["id"] = new[token["content"]]
    data["added_tokens"].sort(key=lambda token: token["id"])
    data["padding"] = data["truncation"] = None
    for place, key in list(_named(data["post_processor"])):
        numbers = [new[token] for token in _tokens(place, key)]
        place[key] = numbers if key == "ids" else [place[key][0], *numbers]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tokenizer.save_pretrained(folder)
        for file in folder.iterdir():  # tables of the whole vocabulary, which would be taken for the cut one's
            if file.name not in FILES:
                file.unlink()
        (folder / "tokenizer.json").write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
        settings = folder / "tokenizer_config.json"
        written = json.loads(settings.read_text(encoding="utf-8"))
        if "added_tokens_decoder" in written:
            entries = written["added_tokens_decoder"].values()
            written["added_tokens_decoder"] = {str(new[e["content"]]): e for e in entries if e["content"] in new}
        settings.write_text(json.dumps(written, ensure_ascii=False, indent=2), encoding="utf-8")
        made = AutoTokenizer.from_pretrained(folder)
    made.name_or_path = tokenizer.name_or_path
    return made


def _named(part: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """Where a post-processor of a tokenizer.json names tokens with their ids, whatever its kind: (a mapping, a key)."""
    for inner in part if isinstance(part, list) else ():
        yield from _named(inner)
    for name, value in part.items() if isinstance(part, dict) else ():
        if (name == "ids" and "tokens" in part) or (name in ("sep", "cls") and isinstance(value, list)):
            yield part, name
        else:
            yield from _named(value)


def _tokens(place: dict[str, Any], key: str) -> list[str]:
    return list(place["tokens"]) if key == "ids" else [place[key][0]]


def _require_same_tokens(before: PreTrainedTokenizerBase, after: PreTrainedTokenizerBase, texts: Iterable[str]) -> None:
    for batch in _batches(islice(iter(texts), CHECKED)):
        encoded = (one(batch, verbose=False)["input_ids"] for one in (before, after))
        for text, old, new in zip(batch, *encoded, strict=True):
            if before.convert_ids_to_tokens(old) != after.convert_ids_to_tokens(new):
                raise ModelError(
                    problem(
                        "The tokenizer reads the texts in another way once its vocabulary is cut",
                        given=f"'{text[:80]}'",
                        follows="The model would see other tokens than those it was trained on",
                        do="Leave out vocabulary for this model",
                    )
                )


def cut_vocabulary(model: PreTrainedModel, vocabulary: Vocabulary) -> PreTrainedModel:
    """A new model that knows the tokens of a cut vocabulary by their new ids; `model` is left as it was.

    The kept rows of the embeddings, and of an output layer over words, are copied; the ids of special tokens in the
    config become the new ones. For ids that stand for the same tokens, the outputs are exactly those of `model`.

    Raises:
        ModelError: the vocabulary isn't this model's; its config names a token that isn't kept; positions are counted
            from the padding id, and that id has changed.
    """
    old, kept, new_ids = int(model.config.get_text_config().vocab_size), vocabulary.kept, vocabulary.new_ids
    if max(kept) >= old:
        raise ModelError(
            problem(
                "The tokenizer has more tokens than the model",
                given=f"ids up to {max(kept)}, {old} rows of embeddings",
                do="Give the model's own tokenizer",
            )
        )
    _require_padding_kept(model, new_ids)
    config = copy.deepcopy(model.config)
    for part in {id(found): found for found in (config, config.get_text_config())}.values():
        _renumber_config(part, new_ids, old)
    config.get_text_config().vocab_size = len(kept)
    with torch.random.fork_rng(devices=[]):  # all that is initialised at random here is overwritten
        student = cast(type(model)(config), model.dtype)
    rows, wanted, state = torch.tensor(kept), student.state_dict(), {}
    for name, tensor in model.state_dict().items():
        cut = [n for n, (a, b) in enumerate(zip(tensor.shape, wanted[name].shape, strict=True)) if a != b]
        state[name] = tensor.index_select(cut[0], rows.to(tensor.device)) if cut else tensor
    student.load_state_dict(state)
    student.eval()  # type: ignore[no-untyped-call]
    return student


def _renumber_config(config: Any, new_ids: dict[int, int], old: int) -> None:
    for name, ids in list(_named_ids(config)):
        several = ids if isinstance(ids, list) else [ids]
        lost = [one for one in several if one not in new_ids and 0 <= one < old]
        if lost:
            raise ModelError(
                problem(
                    f"The model's config names a token that the vocabulary doesn't keep: {name}",
                    given=f"id {lost[0]}",
                    do="Cut the tokenizer with keep=special_ids(model.config)",
                )
            )
        found = [new_ids.get(one) for one in several]  # None for what never was a token
        setattr(config, name, found if isinstance(ids, list) else found[0])


def _require_padding_kept(model: PreTrainedModel, new_ids: dict[int, int]) -> None:
    for name, module in model.named_modules():
        padding = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and padding is not None and new_ids.get(padding) != padding:
            raise ModelError(
                problem(
                    f"{type(model).__name__} counts positions from the padding token's id, which would change",
                    given=f"{padding} to {new_ids.get(padding)}",
                    follows="Every position would be read as another",
                    do="Leave out vocabulary for this model",
                )
            )
