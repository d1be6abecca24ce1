"""The engine on the tiny bundle: answers, explanations, interventions, and bundles that it refuses."""

from __future__ import annotations

import contextlib
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.bottleneck import softmax
from serving.contract import Answer, ConceptAnswer, Explain, Outcome
from serving.engine import BatchStats, Engine, EngineSettings, Intervention
from serving.graphs import ATTRIBUTE, EXPLAIN, PREDICT, open_session
from serving.masks import MASKS, Units, describe_edits, read_masks
from sparsecbm.bundle import MANIFEST, Format, Manifest, Precision, read_manifest, write_manifest
from sparsecbm.errors import BundleError, InputError, SparseCBMError
from sparsecbm.tokens import TOKENIZER, encode, tokenizer_from_text
from tests.serving.conftest import MakeBundle

TASTY = "the pasta was tasty , the waiter was rude ."
TEXTS = [
    "the room was loud .",
    TASTY,
    "we came on friday",
    "the staff was kind , the soup was bland , the evening was calm , we came again with friends .",
    "the waiter was slow .",
    "fish",
    "the fish was fresh , we came on friday .",
]
LONG = "the pasta was tasty and " * 30
UNICODE = [
    "the pasta 🍝 was tasty 👩‍👩‍👧‍👦 again",
    "the cafe\u0301 pasta was e\u0301te\u0301 tasty",
    "שלום the pasta مرحبا بالعالم was tasty",
    "𝒯he pasta ﬁsh İ tasty",
    "日本語 pasta was tasty",
]
ANY_TEXT = st.text(st.characters(), max_size=60)
CONTROLS = " \t\n\x00\x01\x1b\x7f\x85\u200b\u200d\u202e\u2028\ufeff"
STRANGE = st.text(st.sampled_from(CONTROLS + "\ufffd\ufffe\U0010ffff\ud800\udfff\u0301é日🍝a."))


def concept(answer: Answer, name: str) -> ConceptAnswer:
    return next(concept for concept in answer.concepts if concept.name == name)


def values(answer: Answer) -> list[str]:
    return [answer.label.value, *(concept.value for concept in answer.concepts)]


@pytest.fixture
def runs(engine: Engine) -> Iterator[list[BatchStats]]:
    """What the engine tells of its runs."""
    told: list[BatchStats] = []
    engine.observe = told.append
    yield told
    engine.observe = None


def test_reads_what_the_words_say(engine: Engine) -> None:
    [answer] = engine.predict([TASTY])
    assert [(item.name, item.value) for item in answer.concepts] == [
        ("food", "Positive"),
        ("service", "Negative"),
        ("noise", "unknown"),
    ]


def test_answers_come_in_the_order_of_the_texts(engine: Engine) -> None:
    answers = engine.predict(TEXTS, {"tokens"})
    read = [" ".join(token.text for token in answer.concepts[0].tokens or ()) for answer in answers]
    assert read == TEXTS


def test_text_alone_and_in_a_batch_gets_the_same_values(engine: Engine) -> None:
    together = engine.predict(TEXTS)
    alone = [engine.predict([text])[0] for text in TEXTS]
    assert list(map(values, together)) == list(map(values, alone))


def test_text_alone_and_in_a_batch_gets_nearly_the_same_probabilities(engine: Engine) -> None:
    for text, together in zip(TEXTS, engine.predict(TEXTS), strict=True):
        [alone] = engine.predict([text])
        for ours, theirs in zip(together.concepts, alone.concepts, strict=True):
            assert ours.probabilities == pytest.approx(theirs.probabilities, abs=0.05)


def test_no_texts_give_no_answers(engine: Engine) -> None:
    assert engine.predict([]) == []
    assert engine.intervene([]) == []


def test_contributions_and_bias_sum_to_the_labels_logits(engine: Engine, manifest: Manifest) -> None:
    for answer in engine.predict(TEXTS):
        logits = [
            sum(item.contributions[label] for item in answer.concepts) + bias
            for label, bias in zip(manifest.labels, manifest.head.bias, strict=True)
        ]
        assert list(answer.probabilities.values()) == pytest.approx(softmax(np.array(logits)).tolist(), abs=1e-9)


def test_probabilities_sum_to_one(engine: Engine) -> None:
    for answer in engine.predict(TEXTS):
        for group in (answer.probabilities, *(item.probabilities for item in answer.concepts)):
            assert sum(group.values()) == pytest.approx(1)


def test_value_is_the_most_probable(engine: Engine) -> None:
    for answer in engine.predict(TEXTS):
        for item in answer.concepts:
            assert item.probability == item.probabilities[item.value] == max(item.probabilities.values())


@pytest.mark.parametrize("text", UNICODE)
def test_offsets_point_at_the_tokens_characters(engine: Engine, text: str) -> None:
    [answer] = engine.predict([text], {"tokens"})
    tokens = answer.concepts[0].tokens or []
    assert all(token.text == text[token.start : token.end] for token in tokens)
    assert {"pasta", "tasty"} <= {token.text for token in tokens}


@pytest.mark.parametrize("text", UNICODE)
def test_tokens_neither_overlap_nor_go_back(engine: Engine, text: str) -> None:
    [answer] = engine.predict([text], {"tokens"})
    edges = [edge for token in answer.concepts[0].tokens or () for edge in (token.start, token.end)]
    assert edges == sorted(edges)


@pytest.mark.parametrize(
    ("text", "name", "word"),
    [
        ("the waiter was rude", "service", "rude"),
        ("the room was loud .", "noise", "loud"),
        (TASTY, "food", "tasty"),
    ],
)
def test_telling_word_speaks_for_the_value(engine: Engine, text: str, name: str, word: str) -> None:
    [answer] = engine.predict([text], {"tokens"})
    [score] = [token.score for token in concept(answer, name).tokens or () if token.text == word]
    assert score > 0


def test_explanations_are_given_only_where_asked_for(engine: Engine) -> None:
    [answer] = engine.predict([TASTY], {"subnetwork"})
    assert all(item.tokens is None and item.subnetwork is not None for item in answer.concepts)


def test_explaining_leaves_the_answer_as_it_is(engine: Engine) -> None:
    plain = engine.predict(TEXTS)
    for ours, explained in zip(plain, engine.predict(TEXTS, {"tokens", "subnetwork"}), strict=True):
        bare = [item.model_copy(update={"tokens": None, "subnetwork": None}) for item in explained.concepts]
        assert ours == explained.model_copy(update={"concepts": bare})


def test_subnetwork_names_only_units_that_the_mask_keeps(engine: Engine, bundle: Path, manifest: Manifest) -> None:
    units, masks = Units(manifest.layout), read_masks(bundle, manifest)
    [answer] = engine.predict([TASTY], {"subnetwork"})
    for mask, item in zip(masks, answer.concepts, strict=True):
        assert item.subnetwork is not None
        kept = {units.place(int(unit)) for unit in np.flatnonzero(mask)}
        named = [(unit.layer, unit.kind, unit.index) for unit in item.subnetwork.units]
        assert named and set(named) <= kept


def test_long_text_is_truncated_and_says_so(engine: Engine) -> None:
    short, long = engine.predict([TASTY, LONG], {"tokens"})
    assert (short.truncated, long.truncated) == (False, True)


def test_truncated_text_is_read_up_to_the_models_limit(engine: Engine, manifest: Manifest) -> None:
    [answer] = engine.predict([LONG], {"tokens"})
    assert len(answer.concepts[0].tokens or ()) == manifest.max_tokens - 2  # [CLS] and [SEP]


@pytest.mark.parametrize("text", ["", " ", "\t\r\n", "\u3000\u2003"])
def test_text_of_nothing_but_spaces_is_refused(engine: Engine, text: str) -> None:
    with pytest.raises(InputError, match="empty"):
        engine.predict([TASTY, text])


@pytest.mark.parametrize("text", ["\ud800", "pasta \udc00 tasty", "\udfff\ud800"])
def test_half_a_surrogate_pair_is_refused(engine: Engine, text: str) -> None:
    with pytest.raises(InputError, match="surrogate"):
        engine.predict([text])


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(texts=st.lists(ANY_TEXT | STRANGE, min_size=1, max_size=3))
def test_any_unicode_is_answered_or_refused(engine: Engine, texts: list[str]) -> None:
    try:
        answers = engine.predict(texts, {"tokens", "subnetwork"})
    except SparseCBMError:
        return
    for text, answer in zip(texts, answers, strict=True):
        assert all(token.text == text[token.start : token.end] for token in answer.concepts[0].tokens or ())


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(unit=(ANY_TEXT | STRANGE).filter(bool), times=st.integers(1, 5000))
def test_a_text_of_any_length_is_answered_or_refused(engine: Engine, unit: str, times: int) -> None:
    try:
        [answer] = engine.predict([unit * times], {"tokens"})
    except InputError:
        return
    tokens = answer.concepts[0].tokens or []
    assert all(token.text == (unit * times)[token.start : token.end] for token in tokens)
    assert len(tokens) < engine.manifest.max_tokens
    assert answer.truncated or len(unit * times) <= 32 * engine.manifest.max_tokens


@pytest.mark.parametrize("spaces", [3000, 100_000])
def test_text_behind_more_than_can_be_read_is_not_read_and_said_to_be_cut(engine: Engine, spaces: int) -> None:
    [near, far] = engine.predict(["fish" + " " * 100 + "tasty", "fish" + " " * spaces + "tasty"], {"tokens"})
    assert [token.text for token in near.concepts[0].tokens or ()] == ["fish", "tasty"]
    assert [token.text for token in far.concepts[0].tokens or ()] == ["fish"]
    assert (near.truncated, far.truncated) == (False, True)


def test_a_huge_text_takes_little_memory_and_time(bundle: Path) -> None:
    """Tokenised as a whole, it would take 20 bytes per byte, and minutes."""
    code = (
        "import resource\n"
        "from serving.engine import Engine, EngineSettings\n"
        f"engine = Engine.load({str(bundle)!r}, EngineSettings(threads=1))\n"
        "engine.predict(['the pasta was tasty ' * 100], {'tokens'})\n"
        "text = 'a b ' * 8_000_000\n"
        "usage = lambda: resource.getrusage(resource.RUSAGE_SELF)\n"
        "before = usage()\n"
        "assert engine.predict([text], {'tokens'})[0].truncated\n"
        "print((usage().ru_maxrss - before.ru_maxrss) / 1024, usage().ru_utime - before.ru_utime)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    megabytes, seconds = map(float, done.stdout.split())
    assert megabytes < 100 and seconds < 5  # the check for surrogates copies the text's 32 MB


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(text=ANY_TEXT | STRANGE, name=ANY_TEXT | st.just("food"), value=ANY_TEXT | st.just("Negative"))
def test_any_correction_is_applied_or_refused(engine: Engine, text: str, name: str, value: str) -> None:
    try:
        [outcome] = engine.intervene([Intervention(text, {name: value}, "mask")])
    except SparseCBMError:
        return
    assert outcome.corrections == {name: value}


def test_batch_over_the_budget_is_split(engine: Engine, bundle: Path) -> None:
    small = Engine.load(bundle, EngineSettings(threads=1, token_budget=40))
    runs: list[BatchStats] = []
    small.observe = runs.append
    answers = small.predict(TEXTS * 3)
    assert len(runs) > 1 and all(run.padded_tokens <= 40 for run in runs)
    assert list(map(values, answers)) == list(map(values, engine.predict(TEXTS * 3)))


def test_explanation_over_the_budget_is_split(bundle: Path) -> None:
    small = Engine.load(bundle, EngineSettings(threads=1, explain_token_budget=40))
    runs: list[BatchStats] = []
    small.observe = runs.append
    small.predict(TEXTS * 3, {"tokens"})
    assert len(runs) > 1 and all(run.padded_tokens <= 40 for run in runs)


def test_batches_on_several_threads_give_the_same_answers_in_the_same_order(engine: Engine, bundle: Path) -> None:
    several = Engine.load(bundle, EngineSettings(threads=3, token_budget=70, explain_token_budget=70))
    asked: list[Explain] = ["tokens", "subnetwork"]
    for explain in ([], asked):
        for one, other in zip(several.predict(TEXTS * 9, explain), engine.predict(TEXTS * 9, explain), strict=True):
            assert values(one) == values(other)
            assert one.probabilities == pytest.approx(other.probabilities, abs=1e-4)


@pytest.mark.parametrize("threads", [1, 2])
def test_few_texts_are_spread_over_the_threads(bundle: Path, threads: int) -> None:
    several = Engine.load(bundle, EngineSettings(threads=threads, token_budget=4096))
    runs: list[BatchStats] = []
    several.observe = runs.append
    several.predict([TASTY] * 60)
    assert len(runs) == threads


def test_explained_answer_says_what_the_plain_one_says(engine: Engine) -> None:
    for plain, explained in zip(engine.predict(TEXTS), engine.predict(TEXTS, {"tokens", "subnetwork"}), strict=True):
        bare = [item.model_copy(update={"tokens": None, "subnetwork": None}) for item in explained.concepts]
        assert plain == explained.model_copy(update={"concepts": bare})


def test_bundle_without_an_attribution_graph_explains_alike(copy: Path, engine: Engine) -> None:
    (copy / ATTRIBUTE).unlink()
    seal(copy)
    without = Engine.load(copy, EngineSettings(threads=1))
    scores = [
        [
            token.score
            for answer in some.predict(TEXTS, {"tokens"})
            for item in answer.concepts
            for token in item.tokens or ()
        ]
        for some in (without, engine)
    ]
    assert np.asarray(np.corrcoef(scores))[0, 1] > 0.97


def test_text_longer_than_the_budget_runs_alone(bundle: Path) -> None:
    small = Engine.load(bundle, EngineSettings(threads=1, token_budget=8))
    runs: list[BatchStats] = []
    small.observe = runs.append
    small.predict([LONG, "fish", LONG])
    assert [run.texts for run in runs] == [1, 1, 1]


def test_every_text_is_counted_once(engine: Engine, runs: list[BatchStats]) -> None:
    engine.predict(TEXTS)
    assert sum(run.texts for run in runs) == len(TEXTS)


def test_tokens_are_counted_with_and_without_padding(engine: Engine, runs: list[BatchStats]) -> None:
    engine.predict(["fish", "the fish"])  # and [CLS] and [SEP] each
    assert [(run.tokens, run.padded_tokens) for run in runs] == [(7, 8)]


def test_unknown_concept_is_refused_with_the_known_ones(engine: Engine) -> None:
    with pytest.raises(InputError, match="food, service, noise") as refused:
        engine.intervene([Intervention(TASTY, {"ambiance": "Positive"})])
    assert refused.value.detail["known"] == ["food", "service", "noise"]


def test_unknown_value_is_refused_with_the_known_ones(engine: Engine) -> None:
    with pytest.raises(InputError, match="Negative, Positive, unknown") as refused:
        engine.intervene([Intervention(TASTY, {"food": "tasty"})])
    assert refused.value.detail["known"] == ["Negative", "Positive", "unknown"]


def test_intervention_without_corrections_is_refused(engine: Engine) -> None:
    with pytest.raises(InputError, match="no correction"):
        engine.intervene([Intervention(TASTY, {})])


def corrected(engine: Engine) -> Outcome:
    [outcome] = engine.intervene([Intervention(TASTY, {"food": "Negative"})])
    return outcome


def test_concept_level_makes_the_probability_one_hot(engine: Engine) -> None:
    food = concept(corrected(engine).after, "food")
    assert food.probabilities == {"Negative": 1.0, "Positive": 0.0, "unknown": 0.0}
    assert food.value == "Negative"


def test_concept_level_marks_only_the_corrected_concept(engine: Engine) -> None:
    outcome = corrected(engine)
    assert [item.name for item in outcome.after.concepts if item.corrected] == ["food"]
    assert not any(item.corrected for item in outcome.before.concepts)


def test_concept_level_leaves_other_concepts_identical(engine: Engine) -> None:
    outcome = corrected(engine)
    assert outcome.before.concepts[1:] == outcome.after.concepts[1:]


def test_concept_level_says_what_flipped(engine: Engine) -> None:
    outcome = corrected(engine)
    assert outcome.flipped.concepts == ["food"]
    assert outcome.flipped.label == (outcome.before.label.value != outcome.after.label.value)
    assert outcome.reached and outcome.edits == []


def test_before_is_what_predict_says(engine: Engine) -> None:
    assert corrected(engine).before == engine.predict([TASTY])[0]


def test_confirming_a_value_flips_nothing(engine: Engine) -> None:
    [outcome] = engine.intervene([Intervention(TASTY, {"food": "Positive"})])
    assert not outcome.flipped.label and not outcome.flipped.concepts


def test_corrected_concept_is_not_asked_for_next(engine: Engine) -> None:
    outcome = corrected(engine)
    assert {item.concept for item in outcome.before.ask_next} == {"food", "service", "noise"}
    assert {item.concept for item in outcome.after.ask_next} == {"service", "noise"}


# Masks of 104 units: an edit needs a larger share of them than of a real model's thousands.
GENEROUS = EngineSettings(threads=1, edit_budget=0.3, edit_step=0.02)
# What no small edit can talk a confident model out of.
CONFIDENT = [
    Intervention(TASTY, {"food": "Negative"}, "mask"),
    Intervention("we came on friday", {"food": "Positive", "noise": "Positive"}, "mask"),
]
WORDS = "pasta soup waiter staff room bland burnt tasty fresh rude slow kind quick loud quiet calm the was and but very"


@pytest.fixture(scope="module")
def mistakes(engine: Engine) -> list[Intervention]:
    """Corrections of the values that the model is least sure of, to the next probable ones."""
    generator = random.Random(0)
    texts = [" ".join(generator.choices(WORDS.split(), k=generator.randint(2, 8))) for _ in range(200)]
    doubts = []
    for text, answer in zip(texts, engine.predict(texts), strict=True):
        for item in answer.concepts:
            _, second = sorted(item.probabilities, key=item.probabilities.__getitem__, reverse=True)[:2]
            doubts.append((item.probabilities[second], Intervention(text, {item.name: second}, "mask")))
    doubts.sort(key=lambda doubt: -doubt[0])
    return [request for _, request in doubts[:12]]


@pytest.fixture(scope="module")
def requests(mistakes: list[Intervention]) -> list[Intervention]:
    return [*mistakes, *CONFIDENT]


@pytest.fixture(scope="module")
def mask_outcomes(bundle: Path, requests: list[Intervention]) -> list[Outcome]:
    return Engine.load(bundle, GENEROUS).intervene(requests)


def test_mask_level_reaches_the_value_on_doubtful_concepts(
    mistakes: list[Intervention], mask_outcomes: list[Outcome]
) -> None:
    reached = [outcome.reached for outcome in mask_outcomes[: len(mistakes)]]
    assert sum(reached) >= 0.8 * len(reached)


def test_mask_level_says_reached_exactly_where_it_is(mask_outcomes: list[Outcome]) -> None:
    for outcome in mask_outcomes:
        found = {name: concept(outcome.after, name).value for name in outcome.corrections}
        assert outcome.reached == (found == outcome.corrections)


def test_mask_level_never_changes_other_concepts(mask_outcomes: list[Outcome]) -> None:
    for outcome in mask_outcomes:
        for before, after in zip(outcome.before.concepts, outcome.after.concepts, strict=True):
            assert before.name in outcome.corrections or before == after


def test_mask_level_edits_only_corrected_concepts(mask_outcomes: list[Outcome]) -> None:
    for outcome in mask_outcomes:
        assert {edit.concept for edit in outcome.edits} <= set(outcome.corrections)


@pytest.mark.parametrize("settings", [EngineSettings(threads=1), GENEROUS], ids=["default", "generous"])
def test_mask_level_stays_within_the_budget(
    bundle: Path, manifest: Manifest, requests: list[Intervention], settings: EngineSettings
) -> None:
    kept = dict(zip((item.name for item in manifest.concepts), read_masks(bundle, manifest).sum(1), strict=True))
    for outcome in Engine.load(bundle, settings).intervene(requests):
        for name in outcome.corrections:
            spent = sum(edit.concept == name for edit in outcome.edits)
            assert spent <= max(1, settings.edit_budget * kept[name])


def test_mask_level_says_where_the_budget_did_not_suffice(bundle: Path) -> None:
    small = Engine.load(bundle, EngineSettings(threads=1, edit_budget=0.001))
    [outcome] = small.intervene([CONFIDENT[0]])
    assert not outcome.reached
    assert concept(outcome.after, "food").value != "Negative"


def test_mask_level_edits_nothing_where_the_value_is_right(engine: Engine) -> None:
    [outcome] = engine.intervene([Intervention(TASTY, {"food": "Positive"}, "mask")])
    assert outcome.reached and outcome.edits == [] and outcome.after.label == outcome.before.label


def test_edits_are_all_that_the_answer_comes_from(
    bundle: Path, manifest: Manifest, requests: list[Intervention], mask_outcomes: list[Outcome]
) -> None:
    """The explanation graph under the mask that the edits describe gives the same probabilities."""
    outcome, request = mask_outcomes[-2], requests[-2]
    units, masks = Units(manifest.layout), read_masks(bundle, manifest)
    places = {units.place(unit): unit for unit in range(masks.shape[1])}
    edited = masks.copy()
    for edit in outcome.edits:
        unit = places[edit.layer, edit.kind, edit.index]
        assert masks[0, unit] == (edit.change == "dropped")
        edited[0, unit] = not masks[0, unit]
    assert describe_edits(units, "food", masks[0], edited[0]) == outcome.edits
    tokenizer = tokenizer_from_text((bundle / TOKENIZER).read_text(), manifest.max_tokens)
    ids = encode(tokenizer, [request.text]).ids[0][None]
    heads, neurons = units.split(edited[None].astype(np.float32))
    [logits] = open_session(bundle / EXPLAIN, 1).run(
        ["logits"],
        {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "head_gates": heads,
            "neuron_gates": neurons,
            "value_weights": np.zeros((1, 3, 3), np.float32),
        },
    )
    expected = softmax(logits[0, 0].astype(np.float64)).tolist()
    assert list(concept(outcome.after, "food").probabilities.values()) == pytest.approx(expected, abs=1e-3)


def test_interventions_of_both_levels_keep_their_order(engine: Engine, requests: list[Intervention]) -> None:
    mixed = [requests[0], Intervention(LONG, {"food": "Negative"}), *requests[-2:]]
    outcomes = engine.intervene(mixed)
    assert [(outcome.level, outcome.corrections) for outcome in outcomes] == [
        (request.level, request.corrections) for request in mixed
    ]
    assert [values(outcome.before) for outcome in outcomes] == [
        values(answer) for answer in engine.predict([request.text for request in mixed])
    ]


def test_intervention_leaves_the_engine_as_it_was(bundle: Path, requests: list[Intervention]) -> None:
    engine = Engine.load(bundle, GENEROUS)
    before = engine.predict(TEXTS, {"subnetwork"})
    engine.intervene(requests)
    assert engine.predict(TEXTS, {"subnetwork"}) == before


@pytest.mark.slow
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_a_graph_of_other_constants_answers_or_is_refused(
    bundle: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """What is hostile and well-formed: shapes, places and axes that don't fit, in a bundle whose hashes do."""
    folder = Path(shutil.copytree(bundle, tmp_path_factory.mktemp("constants") / "bundle"))
    path = folder / data.draw(st.sampled_from([PREDICT, EXPLAIN]))
    graph = onnx.load(path, load_external_data=False)
    constants = [tensor for tensor in graph.graph.initializer if tensor.data_type == onnx.TensorProto.INT64]
    chosen = data.draw(st.sampled_from(constants))
    values = onnx.numpy_helper.to_array(chosen).copy()
    place = data.draw(st.integers(0, values.size - 1))
    values.reshape(-1)[place] = data.draw(st.sampled_from([-2, -1, 0, 1, 3, 1000, 2**31, 2**40, 2**62]))
    chosen.raw_data = values.tobytes()
    path.write_bytes(graph.SerializeToString())
    seal(folder)
    with contextlib.suppress(BundleError):
        Engine.load(folder, EngineSettings(threads=1)).predict([TASTY, "fish"], {"tokens"})


TRUSTED = EngineSettings(threads=1, edit_budget=0.3, edit_step=0.02, trust_torchscript=True)


def test_torchscript_answers_explains_and_corrects_as_onnx(
    fp32_bundle: Path, torch_bundle: Path, requests: list[Intervention]
) -> None:
    ours, theirs = (Engine.load(folder, TRUSTED) for folder in (torch_bundle, fp32_bundle))
    explain: list[Explain] = ["tokens", "subnetwork"]
    for mine, other in zip(ours.predict(TEXTS, explain), theirs.predict(TEXTS, explain), strict=True):
        assert values(mine) == values(other)
        assert mine.probabilities == pytest.approx(other.probabilities, abs=1e-4)
        for item, twin in zip(mine.concepts, other.concepts, strict=True):
            scores = [[token.score for token in concept.tokens or ()] for concept in (item, twin)]
            assert scores[0] == pytest.approx(scores[1], abs=1e-3)
    for outcome, same in zip(ours.intervene(requests), theirs.intervene(requests), strict=True):
        assert (outcome.edits, outcome.flipped, outcome.reached) == (same.edits, same.flipped, same.reached)


@pytest.mark.parametrize(("format", "precision"), [("onnx", "fp16"), ("torchscript", "bf16")])
def test_half_precision_answers_as_fp32(
    make_bundle: MakeBundle, fp32_bundle: Path, format: Format, precision: Precision
) -> None:
    half = Engine.load(make_bundle(format, precision), TRUSTED)
    full = Engine.load(fp32_bundle, TRUSTED)
    for mine, other in zip(half.predict(TEXTS, {"tokens"}), full.predict(TEXTS, {"tokens"}), strict=True):
        assert values(mine) == values(other)
        assert mine.probabilities == pytest.approx(other.probabilities, abs=0.03)


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    """A bundle of the test's own, to damage."""
    return shutil.copytree(bundle, tmp_path / "bundle")


def seal(folder: Path) -> None:
    """Makes the manifest agree with the files as they are."""
    fields = read_manifest(folder).model_dump(mode="json", exclude={"schema_version", "version", "files"})
    write_manifest(folder, fields)


@pytest.mark.parametrize("file", [PREDICT, ATTRIBUTE, EXPLAIN, MASKS, TOKENIZER, "weights.bin"])
def test_bundle_with_a_changed_byte_is_refused(copy: Path, file: str) -> None:
    content = bytearray((copy / file).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / file).write_bytes(content)
    with pytest.raises(BundleError, match=file):
        Engine.load(copy)


def test_bundle_with_a_changed_manifest_is_refused(copy: Path) -> None:
    path = copy / MANIFEST
    path.write_text(path.read_text().replace("tiny-reviews", "tiny-review5"))
    with pytest.raises(BundleError, match="changed after its export"):
        Engine.load(copy)


def no_graph(folder: Path) -> None:
    (folder / PREDICT).write_bytes(b"no graph")


def no_explanation(folder: Path) -> None:
    (folder / EXPLAIN).write_bytes(b"no graph")


def other_graph(folder: Path) -> None:
    shutil.copy(folder / EXPLAIN, folder / PREDICT)


def short_masks(folder: Path) -> None:
    (folder / MASKS).write_bytes((folder / MASKS).read_bytes()[:-1])


def no_tokenizer(folder: Path) -> None:
    (folder / TOKENIZER).write_text("{}")


@pytest.mark.parametrize(
    ("damage", "file"),
    [
        *((no_graph, PREDICT), (other_graph, PREDICT), (no_explanation, EXPLAIN)),
        *((short_masks, MASKS), (no_tokenizer, TOKENIZER)),
    ],
)
def test_sealed_bundle_with_a_damaged_part_is_refused(copy: Path, damage: Callable[[Path], None], file: str) -> None:
    damage(copy)
    seal(copy)
    with pytest.raises(BundleError, match=file):
        Engine.load(copy)


def test_attribution_graph_of_another_function_is_refused_when_asked_for(copy: Path) -> None:
    shutil.copy(copy / PREDICT, copy / ATTRIBUTE)
    seal(copy)
    engine = Engine.load(copy)
    assert engine.predict([TASTY])
    with pytest.raises(BundleError, match=ATTRIBUTE):
        engine.predict([TASTY], {"tokens"})


def test_explanation_graph_of_another_function_is_refused_when_asked_for(copy: Path) -> None:
    shutil.copy(copy / PREDICT, copy / EXPLAIN)
    seal(copy)
    engine = Engine.load(copy)
    assert engine.predict([TASTY], {"tokens"})
    value = "Negative" if concept(engine.predict([TASTY])[0], "food").value != "Negative" else "Positive"
    with pytest.raises(BundleError, match=EXPLAIN):
        engine.intervene([Intervention(TASTY, {"food": value}, "mask")])
