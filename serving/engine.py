"""The engine: texts to answers, without HTTP or Ray.

    engine = Engine.load("models/restaurant-reviews")
    engine.predict(["Great pasta, but the waiter was rude."], explain={"tokens"})

Texts are tokenised together, sorted by length, and run in batches with a budget of padded tokens: as many batches
at a time as there are threads, each on one of them, since threads that share a batch wait for each other after every
operator. A run releases Python's lock, and an engine may be used by several threads.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Self

import numpy as np
from tokenizers import Encoding

from serving.answers import AnswerWriter, Explanation
from serving.bottleneck import LabelHead, Reading
from serving.contract import Answer, Edit, Explain, Flipped, Level, Outcome
from serving.graphs import ATTRIBUTE, Gradients, Graph, open_attribute, open_explain, open_predict
from serving.masks import Units, describe_edits, edit_units, read_masks
from serving.packing import pack
from sparsecbm.bundle import EXPLAIN_OUTPUTS, PREDICT_OUTPUTS, Manifest, read_bundle
from sparsecbm.errors import BundleError, InputError, SparseCBMError
from sparsecbm.tokens import TOKENIZER, openings, pad, tokenizer_from_text


@dataclass(frozen=True, slots=True)
class Intervention:
    """A correction to apply: to one text, at one level."""

    text: str
    corrections: Mapping[str, str]
    level: Level = "concept"


@dataclass(frozen=True, slots=True)
class BatchStats:
    """What one run of a graph took."""

    texts: int
    tokens: int
    padded_tokens: int
    tokenise_seconds: float
    inference_seconds: float


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How an engine runs.

    Attributes:
        threads: batches that run at a time.
        token_budget: padded tokens of one run of the prediction graph; its activations then fit a core's cache.
        explain_token_budget: padded tokens of one run that explains, which needs more memory.
        edit_budget: most units that a mask-level intervention changes, as a share of the concept's kept ones.
        edit_step: units changed between two looks at the result, likewise.
        trust_torchscript: whether the graphs of a TorchScript bundle, which are programs, may be loaded.
    """

    threads: int = 2
    token_budget: int = 512
    explain_token_budget: int = 128
    edit_budget: float = 0.03
    edit_step: float = 0.0025
    trust_torchscript: bool = False


@dataclass(frozen=True, slots=True)
class _Texts:
    """Tokenised texts: ids, whether they were cut, and character offsets where they were asked for."""

    ids: list[np.ndarray]
    truncated: list[bool]
    offsets: list[list[tuple[int, int]]]
    seconds: float


@dataclass(slots=True)
class _MaskEdit:
    """A mask-level intervention under way."""

    row: int
    masks: np.ndarray  # [concepts, units] bool
    targets: np.ndarray  # [concepts] int, -1 where not corrected
    logits: np.ndarray  # [concepts, values]
    vectors: np.ndarray  # [concepts, values, width]
    reached: bool = False
    rounds: int = 0


class Engine:
    """Answers for one bundle."""

    def __init__(self, folder: Path, manifest: Manifest, settings: EngineSettings) -> None:
        self.manifest = manifest
        self.settings = settings
        self.observe: Callable[[BatchStats], None] | None = None
        self._folder = folder
        try:
            self._tokenizer = tokenizer_from_text((folder / TOKENIZER).read_text(encoding="utf-8"), manifest.max_tokens)
        except (OSError, UnicodeDecodeError, SparseCBMError) as error:
            raise BundleError(f"{folder / TOKENIZER} can't be read: {error}") from error
        self._masks = read_masks(folder, manifest)
        self._units = Units(manifest.layout)
        self._head = LabelHead(manifest)
        self._writer = AnswerWriter(manifest, self._masks)
        self._names = [concept.name for concept in manifest.concepts]
        self._values = {concept.name: concept.values for concept in manifest.concepts}
        self._predict = open_predict(folder, manifest, 1, settings.trust_torchscript)
        self._attribute: Graph | None = None
        self._explain: Graph | None = None
        self._explain_lock = Lock()
        self._pool = ThreadPoolExecutor(settings.threads, thread_name_prefix="graph")

    @classmethod
    def load(cls, path: Path | str, settings: EngineSettings | None = None) -> Self:
        """Opens a bundle, after checking every byte of it.

        Raises:
            BundleError: the bundle is refused; says why.
        """
        folder = Path(path)
        return cls(folder, read_bundle(folder), settings or EngineSettings())

    def warm_up(self, explain: bool = True) -> None:
        """Runs every graph once, so that the first user doesn't wait for it."""
        self.predict(["warm up"], {"tokens"} if explain else ())

    def check_text(self, text: str) -> None:
        """Raises InputError where a text holds nothing to read, or what is no character."""
        if not text or text.isspace():
            raise InputError("the text is empty; send at least one character that is not a space.")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InputError("the text holds half of a surrogate pair; send whole characters.") from None

    def check_corrections(self, corrections: Mapping[str, str]) -> None:
        """Raises InputError where a concept or a value isn't one of the model's."""
        if not corrections:
            raise InputError("there is no correction; name at least one concept and its value.")
        for name, value in corrections.items():
            if name not in self._values:
                raise InputError(
                    f"a correction names an unknown concept; this model's are {', '.join(self._names)}.",
                    {"concept": name, "known": self._names},
                )
            if value not in self._values[name]:
                raise InputError(
                    f"the value given for concept {name!r} is unknown; it can be {', '.join(self._values[name])}.",
                    {"concept": name, "value": value, "known": self._values[name]},
                )

    def predict(self, texts: Sequence[str], explain: Collection[Explain] = ()) -> list[Answer]:
        """Answers for texts, in their order.

        Args:
            texts: to classify; none may be empty.
            explain: which of ``tokens`` and ``subnetwork`` to add; concepts are always explained.

        Raises:
            InputError: a text is empty.
        """
        for text in texts:
            self.check_text(text)
        tokens, subnetwork = "tokens" in explain, "subnetwork" in explain
        encoded = self._tokenise(texts, offsets=tokens)
        explanations: dict[int, Explanation] = {}
        if not tokens and not subnetwork:
            logits, vectors = self._run_predict(encoded)
        elif ATTRIBUTE in self.manifest.files:
            logits, vectors, explanations = self._run_attribute(encoded, tokens, subnetwork)
        else:
            logits, vectors = self._run_predict(encoded)
            explanations = self._explanations(encoded, logits, tokens, subnetwork)
        reading = self._head.read(logits, vectors)
        return [
            self._writer.write(reading, row, text, encoded.truncated[row], explanation=explanations.get(row))
            for row, text in enumerate(texts)
        ]

    def intervene(self, requests: Sequence[Intervention]) -> list[Outcome]:
        """Applies corrections and answers again, in the requests' order.

        At concept level the concept's probabilities become one-hot and the label head runs again. At mask
        level units are dropped from and grown into the concept's mask until it reaches the value or the
        budget is spent; the other concepts' branches are untouched.

        Raises:
            InputError: a text is empty, or a concept or value is unknown.
        """
        for request in requests:
            self.check_text(request.text)
            self.check_corrections(request.corrections)
        encoded = self._tokenise([request.text for request in requests], offsets=False)
        logits, vectors = self._run_predict(encoded)
        before = self._head.read(logits, vectors)
        targets = np.full(logits.shape[:2], -1)
        for row, request in enumerate(requests):
            for name, value in request.corrections.items():
                targets[row, self._names.index(name)] = self._values[name].index(value)
        at_mask = np.array([request.level == "mask" for request in requests])
        edits = self._edit_masks(encoded, logits, vectors, targets, np.flatnonzero(at_mask))
        for edit in edits.values():
            logits[edit.row], vectors[edit.row] = edit.logits, edit.vectors
        after = self._head.read(logits, vectors, np.where(at_mask[:, None], -1, targets))
        return [
            self._outcome(request, row, encoded.truncated[row], before, after, edits.get(row))
            for row, request in enumerate(requests)
        ]

    def _outcome(
        self,
        request: Intervention,
        row: int,
        truncated: bool,
        before: Reading,
        after: Reading,
        edit: _MaskEdit | None,
    ) -> Outcome:
        corrected = frozenset(request.corrections)
        first = self._writer.write(before, row, request.text, truncated)
        second = self._writer.write(after, row, request.text, truncated, corrected)
        changes: list[Edit] = []
        if edit is not None:
            for position in np.flatnonzero(edit.targets >= 0):
                name = self._names[position]
                changes += describe_edits(self._units, name, self._masks[position], edit.masks[position])
        return Outcome.model_construct(
            level=request.level,
            corrections=dict(request.corrections),
            reached=edit is None or edit.reached,
            before=first,
            after=second,
            flipped=Flipped.model_construct(
                label=first.label.value != second.label.value,
                concepts=[
                    old.name for old, new in zip(first.concepts, second.concepts, strict=True) if old.value != new.value
                ],
            ),
            edits=changes,
        )

    def _tokenise(self, texts: Sequence[str], offsets: bool) -> _Texts:
        started = time.perf_counter()
        encode = self._tokenizer.encode_batch if offsets else self._tokenizer.encode_batch_fast
        read = openings(self._tokenizer, texts)
        encodings: list[Encoding] = encode(read)
        if not all(encodings):
            raise InputError("the text holds nothing that the model reads; send at least one word.")
        return _Texts(
            [np.array(encoding.ids, dtype=np.int64) for encoding in encodings],
            [
                bool(encoding.overflowing) or len(opening) < len(text)
                for encoding, opening, text in zip(encodings, read, texts, strict=True)
            ],
            [encoding.offsets for encoding in encodings] if offsets else [],
            time.perf_counter() - started,
        )

    def _batches(self, ids: Sequence[np.ndarray], budget: int) -> Iterator[np.ndarray]:
        return pack([len(row) for row in ids], budget, self.settings.threads)

    def _run(
        self, graph: Graph, outputs: Sequence[str], texts: _Texts, budget: int
    ) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
        """Runs a graph that takes tokens alone, and yields each batch's rows and outputs."""

        def run(rows: np.ndarray) -> tuple[np.ndarray, BatchStats, list[np.ndarray]]:
            chosen = [texts.ids[row] for row in rows]
            padded, mask = pad(chosen, self.manifest.backbone.pad_id)
            started = time.perf_counter()
            given = graph.run(outputs, {"input_ids": padded, "attention_mask": mask})
            seconds = time.perf_counter() - started
            tokenise = texts.seconds * len(rows) / len(texts.ids)
            return rows, BatchStats(len(rows), sum(map(len, chosen)), mask.size, tokenise, seconds), given

        batches = list(self._batches(texts.ids, budget))
        several = len(batches) > 1 and self.settings.threads > 1
        # The longest texts first: the threads then end at about the same time.
        for rows, stats, given in self._pool.map(run, reversed(batches)) if several else map(run, batches):
            if self.observe is not None:
                self.observe(stats)
            yield rows, given

    def _empty(self, texts: int) -> tuple[np.ndarray, np.ndarray]:
        """Room for logits [N, concepts, values] and vectors [N, concepts, values, width] of N texts."""
        shape = (texts, len(self._names), max(map(len, self._values.values())))
        return np.empty(shape, np.float32), np.empty((*shape, self.manifest.head.width), np.float32)

    def _run_predict(self, texts: _Texts) -> tuple[np.ndarray, np.ndarray]:
        """Logits and vectors."""
        logits, vectors = self._empty(len(texts.ids))
        for rows, given in self._run(self._predict, PREDICT_OUTPUTS, texts, self.settings.token_budget):
            logits[rows], vectors[rows] = given
        return logits, vectors

    def _attribute_graph(self) -> Graph:
        """The attribution graph, loaded when it is first asked for."""
        with self._explain_lock:
            if self._attribute is None:
                self._attribute = open_attribute(self._folder, self.manifest, 1)
            return self._attribute

    def _run_attribute(
        self, texts: _Texts, tokens: bool, subnetwork: bool
    ) -> tuple[np.ndarray, np.ndarray, dict[int, Explanation]]:
        """Logits and vectors as ``_run_predict`` gives them, and by row the explanations."""
        logits, vectors = self._empty(len(texts.ids))
        explanations: dict[int, Explanation] = {}
        budget = self.settings.explain_token_budget
        for rows, given in self._run(self._attribute_graph(), EXPLAIN_OUTPUTS, texts, budget):
            gradients = Gradients(*given)
            logits[rows], vectors[rows] = gradients.logits, gradients.vectors
            explanations |= self._explained(texts, rows, gradients, tokens, subnetwork)
        return logits, vectors, explanations

    def _explain_graph(self) -> Graph:
        """The explanation graph, loaded when it is first asked for."""
        with self._explain_lock:
            if self._explain is None:
                settings = self.settings
                self._explain = open_explain(self._folder, self.manifest, settings.threads, settings.trust_torchscript)
            return self._explain

    def _run_explain(self, ids: Sequence[np.ndarray], masks: np.ndarray, value_weights: np.ndarray) -> Gradients:
        """Gradients of one batch, under masks [N, concepts, units] and weights [N, concepts, values]."""
        padded, attention_mask = pad(ids, self.manifest.backbone.pad_id)
        heads, neurons = self._units.split(masks.astype(np.float32))
        started = time.perf_counter()
        outputs = self._explain_graph().run(
            EXPLAIN_OUTPUTS,
            {
                "input_ids": padded,
                "attention_mask": attention_mask,
                "head_gates": heads,
                "neuron_gates": neurons,
                "value_weights": value_weights.astype(np.float32),
            },
        )
        if self.observe is not None:
            seconds = time.perf_counter() - started
            self.observe(BatchStats(len(ids), sum(map(len, ids)), attention_mask.size, 0.0, seconds))
        return Gradients(*outputs)

    def _explanations(
        self, texts: _Texts, logits: np.ndarray, tokens: bool, subnetwork: bool
    ) -> dict[int, Explanation]:
        """Explanations by row, where no attribution graph gives them."""
        weights = _contrast(logits.argmax(-1), np.isfinite(logits))
        explanations: dict[int, Explanation] = {}
        for rows in self._batches(texts.ids, self.settings.explain_token_budget):
            masks = np.broadcast_to(self._masks, (len(rows), *self._masks.shape))
            gradients = self._run_explain([texts.ids[row] for row in rows], masks, weights[rows])
            explanations |= self._explained(texts, rows, gradients, tokens, subnetwork)
        return explanations

    def _explained(
        self, texts: _Texts, rows: np.ndarray, gradients: Gradients, tokens: bool, subnetwork: bool
    ) -> dict[int, Explanation]:
        """Scores for each concept's most probable value against the mean of its other values, by row."""
        units = self._units.join(gradients.heads, gradients.neurons) * self._masks if subnetwork else None
        return {
            row: Explanation(
                gradients.tokens[position, :, : len(texts.ids[row])] if tokens else None,
                texts.offsets[row] if tokens else (),
                None if units is None else units[position],
            )
            for position, row in enumerate(rows.tolist())
        }

    def _edit_masks(
        self, texts: _Texts, logits: np.ndarray, vectors: np.ndarray, targets: np.ndarray, rows: np.ndarray
    ) -> dict[int, _MaskEdit]:
        """Edits masks in small steps until the corrected concepts reach their values, or the budget is spent."""
        edits = {
            int(row): _MaskEdit(int(row), self._masks.copy(), targets[row], logits[row].copy(), vectors[row].copy())
            for row in rows
        }
        kept = self._masks.sum(1)
        budgets = [max(1, int(self.settings.edit_budget * count)) for count in kept]
        steps = [max(1, math.ceil(self.settings.edit_step * count)) for count in kept]
        rounds = max(math.ceil(budget / step) for budget, step in zip(budgets, steps, strict=True))
        for edit in edits.values():
            edit.reached = _reaches(edit.logits, edit.targets)
        active = [edit for edit in edits.values() if not edit.reached]
        while active:
            lengths = [texts.ids[edit.row] for edit in active]
            for batch in self._batches(lengths, self.settings.explain_token_budget):
                chosen = [active[position] for position in batch]
                wanted = np.stack([edit.targets for edit in chosen])
                weights = _lead(wanted, np.stack([edit.logits for edit in chosen]))
                masks = np.stack([edit.masks for edit in chosen])
                gradients = self._run_explain([texts.ids[edit.row] for edit in chosen], masks, weights)
                by_unit = self._units.join(gradients.heads, gradients.neurons)
                for position, edit in enumerate(chosen):
                    touched = edit.targets >= 0
                    if edit.rounds:  # the first look is at the masks as they are
                        edit.logits[touched] = gradients.logits[position][touched]
                        edit.vectors[touched] = gradients.vectors[position][touched]
                    edit.reached = _reaches(edit.logits, edit.targets)
                    if edit.reached or edit.rounds == rounds:
                        edit.rounds = rounds + 1
                        continue
                    edit.rounds += 1
                    for concept in np.flatnonzero(touched):
                        spent = int(np.count_nonzero(edit.masks[concept] != self._masks[concept]))
                        count = min(steps[concept], budgets[concept] - spent)
                        if count > 0 and edit.logits[concept].argmax() != edit.targets[concept]:
                            edit.masks[concept] = edit_units(
                                edit.masks[concept], self._masks[concept], by_unit[position, concept], count
                            )
            active = [edit for edit in active if edit.rounds <= rounds]
        return edits


def _contrast(values: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Weights of "this value rather than the others": 1 at it, and the others share -1.

    Args:
        values: [.., concepts] int, -1 for none (all weights 0).
        present: [.., concepts, values] bool, whether the concept has the value.
    """
    chosen = np.eye(present.shape[-1])[np.maximum(values, 0)]
    others = present & (chosen == 0)
    weights = chosen - others / np.maximum(others.sum(-1, keepdims=True), 1)
    return np.asarray(np.where((values >= 0)[..., None], weights, 0.0))


def _lead(values: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Weights of "this value's lead over its strongest rival": 1 at it, -1 at the highest of the others.

    Args:
        values: [.., concepts] int, -1 for none (all weights 0).
        logits: [.., concepts, values], as last looked at.
    """
    own = np.eye(logits.shape[-1])
    chosen = own[np.maximum(values, 0)]
    rival = own[np.where(chosen == 1, -np.inf, logits).argmax(-1)]
    return np.asarray(np.where((values >= 0)[..., None], chosen - rival, 0.0))


def _reaches(logits: np.ndarray, targets: np.ndarray) -> bool:
    """Whether every corrected concept's most probable value is the one asked for."""
    return bool(np.all((targets < 0) | (logits.argmax(-1) == targets)))
