"""Whatever the arrays of a data set hold, they are refused in one line or can be trained on."""

import shutil
from random import Random

import numpy as np
import pytest
from damage import flipped, outcome_of
from tiny import make_samples

from lit_gpt.data import store
from lit_gpt.data.compatibility import check_vocabulary
from lit_gpt.errors import UserError

N_IDS = 320
PARTS = ("ids", "labels", "offsets")


@pytest.fixture
def folder(tmp_path):
    splits = {"train": make_samples(40), "val": make_samples(8, 1)}
    meta = {"checkpoint_dir": "x", "tokenizer": "x", "prompt_style": "plain", "samples": {"train": 40, "val": 8}}
    store.save(tmp_path / "data", splits, meta)
    return tmp_path / "data"


def use(folder):
    """Does with each sample what training does: ids and labels are rows of a table."""
    *splits, _ = store.load(folder)
    check_vocabulary(splits, folder, N_IDS)
    table = np.zeros(N_IDS)
    for samples in splits:
        for i in range(len(samples)):
            ids, labels = samples[i]
            assert len(ids) == len(labels) > 0 and ids.min() >= 0
            table[ids].sum(), table[labels[labels != store.IGNORE]].sum()
            assert labels[labels != store.IGNORE].min(initial=0) >= 0


def with_value(value, at):
    def change(array):
        array = array.copy()
        array[at] = value
        return array

    return change


DAMAGE = {  # part, what becomes of its array, what is said
    "a negative id": ("ids", with_value(-1, 5), "value 5 is -1, no id"),
    "an id that is a mark": ("ids", with_value(-100, 5), "value 5 is -100, no id"),
    "an id beyond the vocabulary": ("ids", with_value(N_IDS, 5), "has the token 320, and the model's vocabulary has"),
    "a label beyond the vocabulary": ("labels", with_value(2**30, 5), "has the token 1,073,741,824"),
    "a label that is neither": ("labels", with_value(-99, 5), "value 5 is -99, neither an id nor -100"),
    "fewer labels": ("labels", lambda a: a[:-1], "do not belong together"),
    "fewer offsets": ("offsets", lambda a: np.delete(a, 3), "do not belong together"),
    "a negative offset": ("offsets", with_value(-4, 2), "sample 1 spans"),
    "a first offset": ("offsets", with_value(1, 0), "does not begin at 0"),
    "offsets that fall": ("offsets", lambda a: a[[0, 2, 1, *range(3, len(a))]], "sample 1 spans"),
    "an empty sample": ("offsets", lambda a: with_value(a[1], 2)(a), "sample 1 spans"),
    "an offset beyond the end": ("offsets", with_value(2**40, -1), "do not belong together"),
    "an offset so far that differences overflow": ("offsets", with_value(-(2**63), 2), "sample 1 spans"),
    "no offsets": ("offsets", lambda a: a[:0], "does not begin at 0"),
    "floats": ("ids", lambda a: a.astype(np.float32), "of float32, and no list of integers"),
    "the other byte order": ("ids", lambda a: a.astype(">i4"), "and no list of integers"),
    "two dimensions": ("labels", lambda a: a[None], "and no list of integers"),
    "no dimension": ("labels", lambda a: np.array(3), "and no list of integers"),
    "strings": ("ids", lambda a: a.astype(str), "and no list of integers"),
    "objects": ("ids", lambda a: a.astype(object), "is damaged"),
}


@pytest.mark.parametrize("what", DAMAGE)
@pytest.mark.parametrize("split", ["train", "val"])
def test_arrays_that_do_not_go_together_are_refused(folder, split, what):
    use(folder)
    part, change, said = DAMAGE[what]
    path = folder / f"{split}.{part}.npy"
    np.save(path, change(np.load(path)))
    with pytest.raises(UserError) as e:
        use(folder)
    assert said in str(e.value) and "prepare it again" in str(e.value), e.value


def test_an_archive_in_the_place_of_an_array_is_refused(folder):
    np.savez(folder / "x.npz", np.load(folder / "train.ids.npy"))
    shutil.move(folder / "x.npz", folder / "train.ids.npy")
    with pytest.raises(UserError, match="it holds an archive"):
        use(folder)


def test_damaged_files_are_refused_or_can_be_trained_on(folder):
    random, whole = Random(0), {path: path.read_bytes() for path in sorted(folder.glob("*.npy"))}
    counts = {"read": 0, "refused": 0}
    for i in range(240):
        path = random.choice(list(whole))
        header = 128 if i % 2 else None
        path.write_bytes(flipped(whole[path], random, end=header))
        outcome = outcome_of(lambda: use(folder), len(whole[path]))
        assert not outcome.is_fault, (path.name, i, outcome)
        counts[outcome.kind] += 1
        path.write_bytes(whole[path])
    assert counts["refused"] > 60
