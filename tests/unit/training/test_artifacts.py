"""What a fold leaves behind, damaged: the message names file and remedy."""

import re
import stat

import pytest
import torch

from pipeline.errors import InputError
from pipeline.models import build_model
from pipeline.models.interface import Inputs
from pipeline.training.artifacts import inputs_to_dict, load_fold, save_fold
from pipeline.training.checkpoint import load_checkpoint, save_checkpoint

INPUTS = Inputs({}, {"omics": 6}, {}, 4)
FACTS = {
    **{"model": "mlp", "fold": 0, "seed": 1, "failure": None, "modalities": ["omics"], "time_bins": [0.0, 1.0]},
    **{"inputs": inputs_to_dict(INPUTS), "options": {}, "columns": {}, "scaling": {}},
}
AGAIN = "Delete the model's folds_*.tsv and run again: a fold whose files changed is trained again."


@pytest.fixture
def fold(tmp_path):
    files = tmp_path / "model.safetensors", tmp_path / "model.yaml"
    save_fold(*files, build_model("mlp", INPUTS), FACTS)
    return files


def test_whole_files_give_the_model_and_everybody_may_read_them(fold):
    assert load_fold(*fold)[2] == FACTS
    assert len({stat.S_IMODE(path.stat().st_mode) for path in fold}) == 1


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda raw: raw[:-10], "cannot be read as the weights of its model ("),
        (lambda raw: raw[:20], "cannot be read as the weights of its model ("),
        (lambda raw: b"", "cannot be read as the weights of its model ("),
        (lambda raw: (2**62).to_bytes(8, "little") + raw[8:], "cannot be read as the weights of its model ("),
        (None, "no such file of weights."),
    ],
    ids=["cut", "cut in its head", "empty", "a head of absurd length", "absent"],
)
def test_damaged_weights_are_told(fold, damage, reason):
    weights = fold[0]
    if damage:
        weights.write_bytes(damage(weights.read_bytes()))
    else:
        weights.unlink()
    with pytest.raises(InputError) as error:
        load_fold(*fold)
    assert str(error.value).startswith(f"{weights}: {reason}")
    assert str(error.value).endswith(AGAIN)


def test_the_weights_of_another_model_are_told(fold, tmp_path):
    save_fold(fold[0], tmp_path / "other.yaml", build_model("mlp", Inputs({}, {"omics": 7}, {}, 4)), FACTS)
    with pytest.raises(InputError, match=re.escape(f"{fold[0]}: cannot be read as the weights of its model (Error(s) in loading state")):
        load_fold(*fold)


def test_a_description_that_was_cut_is_told(fold):
    text = fold[1].read_text()
    fold[1].write_text(text[: text.index("inputs")])
    with pytest.raises(InputError) as error:
        load_fold(*fold)
    assert str(error.value) == (
        f"{fold[1]}: is not the whole description of a fold; found 'model, fold, seed, failure, modalities, time_bins', "
        f"expected the keys inputs, options, columns, scaling. {AGAIN}"
    )
    fold[1].write_text(text[: text.index("omics") + 2])
    with pytest.raises(InputError):
        load_fold(*fold)
    fold[1].write_bytes(b"")
    with pytest.raises(InputError, match=r"model.yaml: holds no mapping"):
        load_fold(*fold)


@pytest.mark.parametrize("keep", [0, 1, 10, 300, -200])
def test_a_checkpoint_that_was_cut_is_begun_anew(tmp_path, keep, caplog):
    save_checkpoint(tmp_path / "c.pt", {"weights": torch.ones(100)}, "key")
    raw = (tmp_path / "c.pt").read_bytes()
    (tmp_path / "c.pt").write_bytes(raw[:keep])
    assert load_checkpoint(tmp_path / "c.pt", "key") is None
    assert "training starts from the first epoch" in caplog.text


def test_a_checkpoint_that_is_no_state_is_begun_anew(tmp_path, caplog):
    torch.save(torch.ones(3), tmp_path / "c.pt")
    assert load_checkpoint(tmp_path / "c.pt", "key") is None
    assert "training starts from the first epoch" in caplog.text
