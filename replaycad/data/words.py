"""What the names of folders say, as public data sets, cameras and labelling tools choose them."""

import re
from collections.abc import Sequence
from typing import Literal

Meaning = Literal["train", "test", "held", "truth", "normal", "defect", "neutral", "other", ""]
"""`held`: images for tuning, which nobody may be judged by; `truth`: anomaly masks; `neutral`: it
only holds pictures, or is one session of a camera; `other`: no photos; empty: a name of its own."""

_MEANINGS: dict[Meaning, str] = {
    "train": "train training trainset",
    "test": "test testing tests testset test_public",
    "held": "val valid validation test_private test_private_mixed unlabeled unlabelled",
    "truth": """ground_truth groundtruth gt truth mask masks label labels annotation annotations seg
        segmentation segmentations maske masken masque masques anomaly_mask anomaly_masks
        defect_mask defect_masks""",
    "normal": """good ok okay normal normals pass passed free faultless flawless gut io i.o. bon
        bonne conforme bueno buono 良品 正常 合格 정상 양품""",
    "defect": """bad ng ko nok nio n.i.o. notok defect defects defective def anomaly anomalies
        anomalous abnormal fail failed faulty reject rejects rejected schlecht fehler mauvais defaut
        défaut malo defecto difetto scarto 不良 不良品 不合格 缺陷 异常 異常 불량 이상""",
    "neutral": """image images img imgs photo photos picture pictures rgb data jpg jpeg png bmp""",
    "other": "depth xyz pcd pointcloud point_cloud calibration",
}
_BY_NAME = {word: meaning for meaning, words in _MEANINGS.items() for word in words.split()}
_NOT = frozenset(("not", "no", "non", "un", "nicht", "kein"))
_TOKEN = re.compile(r"[^\W_]+")
# `S0001`, `kos12`, `cam_2`, `2026-11-28`, `2026-11-28T101500`
_SESSION = re.compile(r"[^\W\d_]{0,8}[ _.-]?\d[\dT _.:-]*Z?", re.IGNORECASE)
_JUNK = frozenset(("__macosx", "@eadir", "$recycle.bin", "lost+found", "system volume information"))


def meaning(name: str) -> Meaning:
    """What a folder of this name holds; empty if the name says nothing.

    Case does not matter. Words beside others count as normal or defective alone: `MT_Free`,
    `def_front`, `not good`.
    """
    folded = name.casefold().strip()
    plain = re.sub(r"[\s-]+", "_", folded)
    if plain in _BY_NAME:
        return _BY_NAME[plain]
    tokens = _TOKEN.findall(folded)
    told = {_BY_NAME.get(token) for token in tokens} & {"normal", "defect"}
    denied = bool(_NOT.intersection(tokens)) or plain.startswith("nogood")
    if told == {"normal", "defect"}:  # `defect-free`, but `good_and_bad` says nothing
        return "normal" if tokens[-1] == "free" and not denied else ""
    if told == {"normal"}:
        return "defect" if denied else "normal"
    if told == {"defect"}:
        return "normal" if denied else "defect"
    return "neutral" if is_session(name) else ""


def words(what: Meaning) -> list[str]:
    """The names that mean this by themselves."""
    return [word for word, meant in _BY_NAME.items() if meant == what]


def is_label_of(name: str, others: Sequence[str]) -> bool:
    """Whether a folder beside others holds the training or normal images of one class.

    A word beside others, as in `MT_Free`, says so only where all folders begin alike: `ok_cap` may
    well be a class.
    """
    if meaning(name) not in ("train", "test", "normal"):
        return False
    first = {(_TOKEN.findall(one.casefold()) or [one])[0] for one in [name, *others]}
    return re.sub(r"[\s-]+", "_", name.casefold().strip()) in _BY_NAME or (
        len(first) == 1 and bool(others)
    )


def is_session(name: str) -> bool:
    """Whether a name counts or dates: one recording of many."""
    return _SESSION.fullmatch(name) is not None


def is_junk(name: str) -> bool:
    """Whether a file system, an archive or a network drive left it."""
    return name.startswith(".") or name.casefold() in _JUNK
