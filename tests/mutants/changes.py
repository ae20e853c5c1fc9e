"""The changes: what is put in place of what, what it would do, and which tests have to notice."""

from typing import NamedTuple


class Change(NamedTuple):
    """One wrong change.

    Args:
        file: of the package.
        old: text that is in it once.
        new: text in its place.
        effect: what the program then does.
        tests: files to run, of which one has to fail.
        may_survive: why that is not expected; empty if it is.
    """

    file: str
    old: str
    new: str
    effect: str
    tests: str
    may_survive: str = ""


_EVAL = "tests/stages/test_eval_stage.py"
_TRAIN = "tests/stages/test_train_stage.py"
_REPLAY = "tests/stages/test_replay_stage.py"
_COMPRESS = "tests/stages/test_compress_stage.py"
_SEARCH = "tests/diffusion/test_search.py"
_METRICS = "tests/test_metrics.py"
_SAMPLES = "tests/data/test_samples.py"
_IMAGES = "tests/data/test_images.py"
_MIXTURE = "tests/data/test_mixture.py"
_PENALTIES = "tests/continual/test_penalties.py"
_EXEMPLARS = "tests/continual/test_exemplars.py"
_PACKAGED = "tests/detectors/test_packaged_encoders.py"
_BANKS = "tests/detectors/test_patchcore.py tests/continual/test_banks.py"
_FEATURES = "tests/continual/test_features.py"
_KEYS = "tests/engine/test_staleness.py"
_INPUTS = "tests/stages/test_inputs.py"
_ENGINE = "tests/engine/test_stage_objects.py"

CHANGES = [
    Change("stages/eval.py", "[sample.is_anomalous for", "[not sample.is_anomalous for",
           "image labels are inverted", _EVAL),
    Change("stages/eval.py", "load_anomaly_mask(sample.mask_path, size)",
           "np.roll(load_anomaly_mask(sample.mask_path, size), 1, axis=0)",
           "anomaly masks are shifted by one row", _EVAL),
    Change("stages/eval.py", "zip(range(rows.start, rows.stop), batch,",
           "zip(range(rows.start, rows.stop), batch[::-1],",
           "the anomaly masks of a batch are those of other images", _EVAL),
    Change("stages/eval.py", "np.full(len(images), index, np.int64)",
           "np.full(len(images), 0, np.int64)",
           "all scores are of the first class", _EVAL),
    Change("stages/eval.py", "kept.append(maps.", "kept.append(maps[::-1].",
           "maps that are kept are those of other images", _EVAL),
    Change("stages/eval.py", "seen = seen if detector.localizes else ()",
           "seen = seen",
           "pixels of a detector that does not localize are judged", _EVAL),
    Change("detectors/limits.py", "(1 - FALSE_ALARM_RATE) ** root",
           "(1 - 5 * FALSE_ALARM_RATE) ** root",
           "thresholds let five images in a hundred alarm", _TRAIN),
    Change("stages/train.py", "parts.setdefault(index, [])", "parts.setdefault(max(classes), [])",
           "all classes have one threshold, under the name of the last", _TRAIN),
    Change("stages/train.py", "places[own] = np.arange(len(own))", "places[own] = own",
           "a memory leaves out the wrong image when it sets thresholds", _TRAIN),
    Change("stages/train.py", 'generator(seed, "fit", class_order[index])',
           'generator(0, "fit", class_order[index])',
           "a memory bank ignores the seed", _TRAIN),
    Change("stages/train.py", 'stream_seed(seed, "detector")', 'stream_seed(0, "detector")',
           "initial weights ignore the seed", _TRAIN),
    Change("stages/train.py", "if self._config.balance else None", "if False else None",
           "balance is ignored", _TRAIN),
    Change("stages/train.py", "order[skipped:]", "order[:]",
           "a resumed epoch starts at its first batch", _TRAIN),
    Change("stages/train.py", "if id(parameter) in own and own_keys:", "if not own and own_keys:",
           "a resumed training forgets the optimizer's moments", "tests/engine/test_pipeline.py"),
    Change("stages/train.py", "added(importances, remembered) if remembered else importances",
           "importances", "importances of earlier classes are forgotten", _TRAIN),
    Change("stages/replay.py", "slice(max(done - start, 0), None)", "slice(0, None)",
           "a run resumed within a batch writes rows twice", _REPLAY),
    Change("stages/replay.py", "pick_rows(conditions.poses, own)",
           "pick_rows(conditions.poses, own[::-1])",
           "images are moved to the poses of others", _REPLAY),
    Change("stages/replay.py", 'stream_seed(seed, "replay", class_name, index)',
           'stream_seed(0, "replay", class_name, index)',
           "replays ignore the seed", _REPLAY),
    Change("continual/kept_images.py", "images, own = self.images[picked], self._own[picked]",
           "images, own = self.images[picked], self._own[picked - 1]",
           "exemplars are moved from the poses of others", _REPLAY),
    Change("stages/replay.py", "[rng.integers(len(conditions.object_masks))]", "[0]",
           "every replay is drawn from the first mask", _REPLAY),
    Change("stages/replay.py", 'rotate_degrees=policy["replay_rotate_degrees"]',
           "rotate_degrees=0",
           "the angle of a class's policy is ignored", _REPLAY + " tests/test_poses.py"),
    Change("stages/compress.py", "masks.object_masks[read]", "masks.object_masks[: len(read)]",
           "images are learned from with masks of others", _COMPRESS),
    Change("stages/exemplars.py", "exemplar_poses=self.poses[places]",
           "exemplar_poses=self.poses[: len(places)]",
           "exemplars have the poses of other images", _COMPRESS),
    Change("stages/exemplars.py", "return kept, read[found.order[: len(stored)]].tolist()",
           "return kept, read[found.order[len(stored) :]].tolist()",
           "the images told as kept are those that are not", _COMPRESS),
    Change("stages/compress.py", 'else policy["train_augmentation"]', 'else "none"',
           "images are not turned as the class's policy says", _COMPRESS),
    Change("stages/compress.py", "(config.budget or IMAGE_BUDGET) // 2",
           "(config.budget or IMAGE_BUDGET)",
           "conditions beside exemplars take the whole budget", _COMPRESS),
    Change("stages/mask.py", "object_masks[index] = segmenter.object_mask",
           "object_masks[-1 - index] = segmenter.object_mask",
           "masks are stored in the reverse order of their images",
           "tests/segmentation/test_mask_stage.py"),
    Change("diffusion/search.py", 'generator(seed, "search", done)', 'generator(0, "search", done)',
           "a search ignores the seed", _SEARCH),
    Change("diffusion/search.py", "masks.sample(augmentation, index,",
           "masks.sample(augmentation, index.flip(0),",
           "images are searched with masks of others", _SEARCH),
    Change("diffusion/search.py", "u = u**0.25", "u = u**4",
           "early timesteps are drawn often in place of late ones", _SEARCH),
    Change("continual/penalties.py", "return self._weight / 2", "return -self._weight / 2",
           "a penalty drives important weights away", _PENALTIES),
    Change("continual/penalties.py", "progress=1.0), torch.square", "progress=1.0), torch.abs",
           "EWC's gradients are not squared", _PENALTIES),
    Change("continual/representations.py", "separations[chosen] + MARGIN", "separations[chosen]",
           "a costlier form is chosen for a difference by chance", _EXEMPLARS),
    Change("continual/coverage.py", "np.arange(len(masks)) >= len(real)",
           "np.arange(len(masks)) < len(real)",
           "forms are judged with spoilt images taken for whole ones",
           _EXEMPLARS + " tests/engine/test_stage_objects.py"),
    Change("metrics.py", """len(positives) - np.searchsorted(positives, positives, side="left"),
        order=order,
        num_negatives=len(negatives),""",
           """len(positives) - np.arange(len(positives)),
        order=order,
        num_negatives=len(negatives),""",
           "average precision counts tied positives one after another", _METRICS),
    Change("metrics.py", "np.clip(limit - start, 0.0, stop - start)",
           "np.clip(1.0 - start, 0.0, stop - start)",
           "AUPRO's ramps go on beyond the limit", _METRICS),
    Change("metrics.py", "np.ones((3, 3), dtype=bool)",
           "ndimage.generate_binary_structure(2, 1)",
           "regions that touch at a corner are two", _METRICS),
    Change("metrics.py", "int(ranks.below.sum()) + int(ranks.not_above.sum())",
           "2 * int(ranks.not_above.sum())",
           "AUROC counts ties as won", _METRICS),
    Change("metrics.py", "scores[j:last, j].max()", "scores[:last, j].max()",
           "forgetting counts scores from before a class was learned", _METRICS),
    Change("metrics.py", "_mean([value for value in values.values() if not np.isnan(value)])",
           "_mean([0.0 if np.isnan(value) else value for value in values.values()])",
           "a class without a figure counts as 0 in the mean", _METRICS),
    Change("anomaly.py", "alarm - typical, 1e-12", "alarm, 1e-12",
           "a score at the threshold is not normalized to 1", "tests/test_anomaly.py"),
    Change("data/samples.py", "'train' / 'good'}\",\n        )\n    return sorted(",
           "'train' / 'good'}\",\n        )\n    return list(reversed(found)) or sorted(",
           "training images come in another order", _SAMPLES),
    Change("data/samples.py", 'is_anomalous=kind != "good"', 'is_anomalous=kind == "good"',
           "labels of folders are inverted", _SAMPLES),
    Change("data/samples.py", 'is_anomalous = row["label"] == "anomaly"',
           'is_anomalous = bool(row["mask"])',
           "labels of a table are read from its masks", _SAMPLES),
    Change("data/samples.py", 'if row["split"] != split or (', "if (",
           "test images of a table are trained on", _SAMPLES),
    Change("data/samples.py", 'masks.get(f"{path.stem}_mask") or masks.get(path.stem)',
           "next(iter(masks.values()), None)",
           "defective images have the mask of the first", _SAMPLES),
    Change("data/images.py", "ImageOps.exif_transpose(file)", "file",
           "images are not upright", _IMAGES),
    Change("data/images.py", "values > 0 if values.ndim == 2", "values > 127 if values.ndim == 2",
           "faint numbers in a mask are no defect", _IMAGES),
    Change("data/mixture.py", "(self._file_starts[number] + index) *", "index *",
           "images of later classes are those of the first", _MIXTURE),
    Change("data/mixture.py", "default_rng((seed, epoch))", "default_rng((seed, 0))",
           "every epoch has the same order", _MIXTURE),
    Change("mask_ops.py", 'axis=1 if operation.flip == "left_right" else 0',
           'axis=0 if operation.flip == "left_right" else 1',
           "flips are about the other axis", "tests/test_mask_ops.py"),
    Change("engine/staleness.py", '"seed": seed,', '"seed": None,',
           "artifacts of another seed count as up to date", _KEYS),
    Change("engine/staleness.py", '"stage_version": STAGE_VERSIONS[stage],', '"stage_version": 1,',
           "artifacts of older code count as up to date", _KEYS),
    Change("engine/staleness.py", "header.get(\"inputs\") == dict(inputs)", "True",
           "masks of other images serve", _KEYS),
    Change("engine/compress.py", '"policy": digest_of({"policy": policy}),', "",
           "conditions stay when the class's policy changes", _INPUTS),
    Change("engine/replay.py", ', "policy": digest_of(used), **view}', ", **view}",
           "replays stay when the class's policy changes", _INPUTS),
    Change("engine/train.py", 'inputs["preset"] = digest_of({"preset": structure})',
           'inputs["preset"] = digest_of({})',
           "detectors stay when their structure changes", _INPUTS),
    Change("engine/evaluate.py", 'inputs["class order"] = ",".join(self._samples)', "",
           "scores stay when the classes change places", _INPUTS),
    Change("engine/train.py", "fromkeys([*before, *(one[\"class_name\"] for one in past), *self._",
           "fromkeys([*before, *(one[\"class_name\"] for one in past[::-1]), *self._",
           "past classes are numbered backwards", _ENGINE),
    Change("engine/compress.py", "bare, self._seed, diffusion.device)", "bare, diffusion.device)",
           "a search of another seed is taken for this one", _ENGINE),
    Change("engine/models.py", "if self._loaded != (kind, name):", "if self._loaded[1] != name:",
           "a network of another kind is taken for this one", _ENGINE),
    Change("engine/builder.py", "plan.state != \"hit\" or force", "plan.state != \"hit\"",
           "--force does nothing", "tests/engine/test_pipeline.py"),
    Change("detectors/encoders.py", "module.bias + (bias - mean) * scale", "module.bias - mean",
           "folded batch norms shift features wrongly", _PACKAGED),
    Change("detectors/encoders.py", ".hexdigest() != location.sha256", ".hexdigest() == 'none'",
           "weights of any content are loaded", _PACKAGED),
    Change("detectors/patchcore/network.py",
           "self.bank.new_full((len(classes), size), torch.inf)",
           "self.bank.new_zeros(len(classes), size)",
           "rows that fill a smaller bank up are near to dark images", _BANKS),
    Change("detectors/patchcore/network.py", "nearest.sum(dim=0).argmin()",
           "nearest.sum(dim=0).argmax()", "images go to the class farthest from them", _BANKS),
    Change("detectors/patchcore/network.py", "among = own if self.preset.is_routed else",
           "among = torch.ones_like(own) if self.preset.is_routed else",
           "limits of a class depend on the others", _BANKS),
    Change("engine/banks.py", '"view": view, "seed": seed,', '"view": view,',
           "a bank of another seed is taken for this one", _ENGINE),
    Change("continual/banks.py", "if kept else None", "if kept and False else None",
           "banks are computed again at every step", _BANKS),
]  # fmt: skip
