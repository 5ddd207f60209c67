"""An exported retriever stands alone, and the programs that people use for embeddings take it."""
import os
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest
import torch

from lib.data import build_tokenizer, load_meta
from lib.retrieval import Encoder, export_encoder, load_encoder
from lib.runs import build_model, save_checkpoint
from model import ModelConfig

T, C = 13, 20
TEXTS = ["7 times 3 is 21", "a", "", "says the clerk. " * 9, "naïve 猫", "5"]


def make_encoder(tiny_data, options=(), objective="causal", **config):
    """An untrained encoder of bytes."""
    meta = load_meta(tiny_data / "tiny")
    torch.manual_seed(1)
    config = dict(block_size=T, n_layer=2, n_embd=C, n_head=5, vocab_size=meta["vocab_size"]) | config
    model = build_model(objective, ModelConfig(**config)).eval()
    return Encoder(model, build_tokenizer(meta), meta["eot_id"], **dict(options))


VARIANTS = {
    "mean": ({}, {}), "last": ({"pooling": "last"}, {"model_type": "llama", "n_embd": 30}),
    "left": ({"pooling": "second_to_last", "padding": "left", "normed_states": True},
             {"model_type": "gpt", "tie": True}),
}


def test_exported_folders_stand_alone(tiny_data, tmp_path):
    """A process without this repository gets the same embeddings, whatever else is in the batch."""
    encoders = {name: make_encoder(tiny_data, options, **config) for name, (options, config) in VARIANTS.items()}
    for name, encoder in encoders.items():
        export_encoder(encoder, tmp_path / name)
    code = """
import importlib, sys
import numpy as np
names, texts = sys.argv[1].split(","), sys.argv[2:]
for name in names:
    module = importlib.import_module(f"{name}.sentence").SentenceEncoder.load(name)
    together = module(module.preprocess(texts))["sentence_embedding"]
    alone = [module(module.preprocess([text[2:]], prompt=text[:2]))["sentence_embedding"][0] for text in texts]
    assert module.get_embedding_dimension() == together.size(1) and "lib" not in sys.modules
    np.save(f"{name}.npy", [together.detach().numpy(), [e.detach().numpy() for e in alone]])
"""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", code, ",".join(VARIANTS), *TEXTS], cwd=tmp_path, env=environment,
                          capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    for name, encoder in encoders.items():
        for e in np.load(tmp_path / f"{name}.npy"):
            np.testing.assert_allclose(e, encoder.encode(TEXTS), rtol=0, atol=1e-6)


def test_a_run_is_exported(run, refused, tiny_data):
    """From the command line; a folder that exists, and a model that cannot be exported, are refused."""
    for objective in "causal", "autoencode":
        encoder = make_encoder(tiny_data, objective=objective)
        os.makedirs(f"out/{objective}")
        save_checkpoint({"model": encoder.model.state_dict(), "model_config": asdict(encoder.model.config),
                         "config": {"objective": objective}, "meta": load_meta("data/tiny"),
                         "retrieval": {"pooling": "last"}}, f"out/{objective}", is_best=False)
    status, out, err = run("retrieve.py", "--out_dir=out/causal", "--export=exported/tiny")
    assert status == 0 and "SentenceTransformer('exported/tiny', trust_remote_code=True)" in out, err
    assert sorted(os.listdir("exported/tiny")) == [
        "config.json", "config_sentence_transformers.json", "model.py", "model.safetensors", "modules.json",
        "sentence.py", "tiktoken.json"]
    assert load_encoder("out/causal")[0].pooling == "last"
    refused("exists", "retrieve.py", "--out_dir=out/causal", "--export=exported/tiny")
    refused("objective=causal", "retrieve.py", "--out_dir=out/autoencode", "--export=exported/b")
    refused("no checkpoint", "retrieve.py", "--out_dir=out/none", "--export=exported/b")
    with open("file", "w", encoding="utf-8"):
        refused("cannot write", "retrieve.py", "--out_dir=out/causal", "--export=file/b", status=1)
    assert os.listdir("exported") == ["tiny"]


# ------------------------------------------------------------------------------------------------------------
# with sentence-transformers and MTEB, where they are installed: pip install -r requirements-clients.txt


@pytest.fixture(scope="module")
def clients(tiny_data, tmp_path_factory):
    """(Encoder, SentenceTransformer of its export, the folder of the export)"""
    dynamic_modules = pytest.importorskip("transformers.dynamic_module_utils")
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = tmp_path_factory.mktemp("clients")
    path = list(sys.path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamic_modules, "HF_MODULES_CACHE", str(folder / "modules"))  # not the user's own
        encoder = make_encoder(tiny_data)
        export_encoder(encoder, folder / "tiny")
        yield encoder, sentence_transformers.SentenceTransformer(
            str(folder / "tiny"), trust_remote_code=True, local_files_only=True, device="cpu"), folder / "tiny"
    sys.path[:] = path


QUERIES = {f"q{i}": f"{i} times 7" for i in range(5)}
CORPUS = {f"p{i}": f"{i} times 7 is {7 * i}" for i in range(11)}
RELEVANT = {f"q{i}": {f"p{i}"} for i in range(5)}


def test_sentence_transformers_encodes(clients):
    """Its embeddings are those of the encoder, with all the usual arguments, and its code is the copy."""
    encoder, model, _ = clients
    assert type(model[0]).__module__.startswith("transformers_modules.tiny")
    expected = encoder.encode(TEXTS)
    np.testing.assert_allclose(model.encode(TEXTS), expected, rtol=0, atol=1e-6)
    e = model.encode(TEXTS, batch_size=2, show_progress_bar=True, convert_to_tensor=True, normalize_embeddings=True)
    torch.testing.assert_close(e, torch.from_numpy(expected), rtol=0, atol=1e-6)
    assert model.encode(TEXTS[0]).shape == (C,) and model.encode([]).shape == (0,)
    for text in "xyz", "a" * 40:
        prompted, whole = model.encode(text, prompt="query: "), encoder.encode("query: " + text)
        np.testing.assert_allclose(prompted, whole, rtol=0, atol=1e-6)
    assert (model.get_embedding_dimension(), model.max_seq_length, model.similarity_fn_name) == (C, T, "cosine")
    with pytest.raises(TypeError):
        model.encode(["a", None])


def test_semantic_search_finds_what_search_finds(clients):
    """util.semantic_search and the encoder's own scores put the same passages first."""
    from sentence_transformers import util
    encoder, model, _ = clients
    passages, queries = list(CORPUS.values()), list(QUERIES.values())
    hits = util.semantic_search(model.encode_query(queries), model.encode_document(passages), top_k=1)
    scores = encoder.encode(queries) @ encoder.encode(passages).T
    assert [hit["corpus_id"] for hit, in hits] == scores.argmax(axis=1).tolist()
    np.testing.assert_allclose([hit["score"] for hit, in hits], scores.max(axis=1), atol=1e-5)


def expected_accuracy(encoder):
    """The share of the queries whose own passage comes first; an untrained model has some of them right."""
    scores = encoder.encode(list(QUERIES.values())) @ encoder.encode(list(CORPUS.values())).T
    accuracy = (scores.argmax(axis=1) == np.arange(len(QUERIES))).mean()
    assert 0 < accuracy < 1
    return accuracy


def test_the_information_retrieval_evaluator_measures(clients):
    """Its accuracy at 1 is that of the encoder's scores."""
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
    encoder, model, _ = clients
    measures = InformationRetrievalEvaluator(QUERIES, CORPUS, RELEVANT, name="sums", write_csv=False)(model)
    assert measures["sums_cosine_accuracy@1"] == expected_accuracy(encoder)


def test_mteb_evaluates(clients, monkeypatch, tmp_path):
    """mteb.evaluate runs a retrieval task of our own, and its hits at 1 are those of the encoder's scores."""
    mteb = pytest.importorskip("mteb")
    from datasets import Dataset
    from mteb.abstasks import AbsTaskRetrieval
    encoder, model, _ = clients

    class Sums(AbsTaskRetrieval):
        metadata = mteb.TaskMetadata(
            name="Sums", description="sums", reference=None, dataset={"path": "none/none", "revision": "1"},
            type="Retrieval", category="t2t", modalities=["text"], eval_splits=["test"], eval_langs=["eng-Latn"],
            main_score="hit_rate_at_1", date=None, domains=None, task_subtypes=None, license=None,
            annotations_creators=None, dialect=None, sample_creation=None, bibtex_citation="")

        def load_data(self, **_):
            queries = Dataset.from_list([{"id": key, "text": text} for key, text in QUERIES.items()])
            corpus = Dataset.from_list([{"id": key, "text": text, "title": ""} for key, text in CORPUS.items()])
            relevant = {query: dict.fromkeys(passages, 1) for query, passages in RELEVANT.items()}
            self.dataset = {"default": {"test": {"queries": queries, "corpus": corpus, "relevant_docs": relevant,
                                                 "top_ranked": None}}}
            self.data_loaded = True
    monkeypatch.setenv("MTEB_CACHE", str(tmp_path))
    result = mteb.evaluate(model, Sums(), cache=None, co2_tracker=False, show_progress_bar=False)
    assert result.task_results[0].get_score() == pytest.approx(expected_accuracy(encoder), abs=1e-4)


def test_a_saved_sentence_transformer_loads_again(clients, tmp_path, monkeypatch):
    """What SentenceTransformer.save writes, with our code in it, has the same embeddings; so has a hub's copy."""
    from sentence_transformers import SentenceTransformer
    _, model, folder = clients
    model.save(str(tmp_path / "again"), create_model_card=False)
    assert {*os.listdir(folder)} == {*os.listdir(tmp_path / "again")}
    again = SentenceTransformer(str(tmp_path / "again"), trust_remote_code=True, local_files_only=True, device="cpu")
    np.testing.assert_array_equal(again.encode(TEXTS), model.encode(TEXTS))
    monkeypatch.setattr("sentence_transformers.util.load_dir_path", lambda name, *_: str(folder))
    module = type(model[0]).load("someone/tiny", token="x", cache_folder=None, revision=None, backend="torch")
    assert torch.equal(module.model.wte.weight, model[0].model.wte.weight)


def test_training_reaches_every_weight(clients):
    """In training mode the embeddings have gradients for all weights of the module."""
    _, model, _ = clients
    features = model.train().preprocess(TEXTS)
    (model(features)["sentence_embedding"] * torch.arange(C)).sum().backward()
    untouched = [name for name, weight in model.named_parameters() if weight.grad is None]
    model.eval().zero_grad()
    assert untouched == []
