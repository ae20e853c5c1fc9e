"""What the names of folders say, as public data sets, cameras and labelling tools choose them."""

import re
import unicodedata
from collections.abc import Sequence
from typing import Literal

Meaning = Literal["train", "test", "held", "truth", "normal", "defect", "neutral", "other", ""]
"""`held`: images for tuning, which nobody may be judged by; `truth`: anomaly masks; `neutral`: it
only holds pictures, or is one session of a camera; `other`: no photos; empty: a name of its own."""

_MEANINGS: dict[Meaning, str] = {
    "train": "train training trainset",
    "test": "test testing tests testset test_public",
    "held": "val valid validation test_private test_private_mixed unlabeled unlabelled",
    "truth": """ground_truth ground_truths groundtruth gt gts truth mask masks label labels
        annotation annotations seg
        segmentation segmentations maske masken masque masques anomaly_mask anomaly_masks
        defect_mask defect_masks""",
    "normal": """good ok okay normal normals pass passed free faultless flawless negative no gut io
        bon bonne conforme bueno buono 良品 正常 合格 정상 양품""",
    "defect": """bad ng ko nok nio notok defect defects defective def anomaly anomalies anomalous
        abnormal fail failed faulty reject rejects rejected positive yes schlecht fehler mauvais
        defaut défaut malo defecto difetto scarto 不良 不良品 不合格 缺陷 异常 異常 불량 이상""",
    "neutral": "image images img imgs photo photos picture pictures rgb data jpg jpeg png bmp",
    "other": """depth xyz pcd pointcloud point_cloud normals_map calibration infrared thermal
        overlay overlays vis visualization thumbnails thumbs""",
}
_BY_NAME = {word: meaning for meaning, words in _MEANINGS.items() for word in words.split()}
_ALONE = frozenset((
    "io", "no", "yes", "pass", "passed", "bon", "free", "negative", "positive", "label", "labels",
    "seg", "annotation", "annotations", "truth", "train", "training", "test", "testing", "tests",
    "val", "valid",
))  # fmt: skip
"""Too short or too common to say anything beside other words."""
_NOT = frozenset(
    ("not", "no", "non", "n", "un", "nicht", "kein", "without", "ohne", "sans", "sin")
)
_OF = frozenset(("of", "from", "von", "de"))
_TOKEN = re.compile(r"[^\W_]+")
_NUMBER = re.compile(r"[ _.#-]*(no|nr)?[ _.#-]*\d+$", re.IGNORECASE)
# `S0001`, `kos12`, `cam_2`, `2026-11-28`, `2026-11-28T101500`
_SESSION = re.compile(r"[^\W\d_]{0,8}[ _.-]?\d[\dT _.:-]*Z?", re.IGNORECASE)
_JUNK = frozenset(("__macosx", "@eadir", "$recycle.bin", "lost+found", "system volume information"))


def meaning(name: str) -> Meaning:
    """What a folder of this name holds; empty if the name says nothing.

    Case and a number at the end do not matter: `OK`, `NG2`. Words beside others count as normal,
    defective or masks alone: `MT_Free`, `def_front`, `not good`, `scratch_mask`.
    """
    plain, tokens = _plain(name)
    if plain in _BY_NAME:
        return _BY_NAME[plain]
    rest = [token for token in tokens if _BY_NAME.get(token) != "neutral"]
    if rest and len(rest) < len(tokens) and "_".join(rest) in _BY_NAME:
        return _BY_NAME["_".join(rest)]  # `train_images`
    if len(tokens) > 1 and "truth" in (_beside(tokens[0]), _beside(tokens[-1])):
        return "truth"
    if len(tokens) > 1 and _BY_NAME.get(tokens[-1]) == "other":
        return "other"  # `bad_vis`
    label = _label(tokens)
    return label or ("neutral" if is_session(name) or (tokens and not rest) else "")


def is_exact(name: str) -> bool:
    """Whether a name is one of the words, and not one beside others."""
    return _plain(name)[0] in _BY_NAME


def key_of(name: str) -> str:
    """What a folder of images and that of their masks have in common: `scratch` of both."""
    plain, tokens = _plain(name)
    if meaning(name) == "truth" and plain not in _BY_NAME:
        tokens = tokens[1:] if _beside(tokens[0]) == "truth" else tokens[:-1]
        return " ".join(token for token in tokens if _BY_NAME.get(token) != "neutral")
    return " ".join(_TOKEN.findall(folded(name))) or folded(name)


def words(what: Meaning) -> list[str]:
    """The names that mean this by themselves."""
    return [word for word, meant in _BY_NAME.items() if meant == what]


def folded(name: str) -> str:
    """A name without case, its accents written in one way."""
    return unicodedata.normalize("NFC", name).casefold()


def is_label_of(name: str, others: Sequence[str]) -> bool:
    """Whether a folder beside others holds the training or normal images of one class.

    A word beside others, as in `MT_Free`, says so only where all folders begin alike: `ok_cap` may
    well be a class.
    """
    if meaning(name) not in ("train", "test", "normal"):
        return False
    first = {(_TOKEN.findall(folded(one)) or [one])[0] for one in [name, *others]}
    return is_exact(name) or (len(first) == 1 and bool(others))


def is_session(name: str) -> bool:
    """Whether a name counts or dates: one recording of many."""
    return _SESSION.fullmatch(name) is not None


def is_junk(name: str) -> bool:
    """Whether a file system, an archive or a network drive left it."""
    return name.startswith(".") or name.casefold() in _JUNK


def _plain(name: str) -> tuple[str, list[str]]:
    """A name as it is looked up, and its words; a number at the end is dropped."""
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", unicodedata.normalize("NFC", name).strip())
    parted = _NUMBER.sub("", parted) or parted
    plain = re.sub(r"[\s-]+", "_", parted.casefold()).replace(".", "")
    together = folded(name).replace(".", "")  # `GoodParts` has two words, `NoK` has one
    return (together if together in _BY_NAME else plain), _TOKEN.findall(parted.casefold())


def _beside(token: str) -> str:
    """What a word says beside others."""
    return "" if token in _ALONE else _BY_NAME.get(token, "")


def _label(tokens: Sequence[str]) -> Meaning:
    """What words say together: `not good`, `free of defects`, `defect-free`; `good and bad` do not.

    A word is denied by the word before it, and by none at the end of the name.
    """
    told: set[Meaning] = set()
    for place, token in enumerate(tokens):
        what = _beside(token)
        if what not in ("normal", "defect"):
            continue
        is_free = tokens[place + 1 : place + 2] == ["free"] or (
            place > 1 and tokens[place - 2] == "free" and tokens[place - 1] in _OF
        )
        is_denied = is_free or (place > 0 and tokens[place - 1] in _NOT)
        told.add("normal" if (what == "normal") != is_denied else "defect")
    if not told and tokens and tokens[-1] == "free":
        told.add("normal")
    return told.pop() if len(told) == 1 else ""
