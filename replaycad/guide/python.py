"""Python: the stages from a notebook; each example is run by the tests.

A builder is a data folder, a store and settings, named as by `--set`. Each stage gives an outcome:
whether it ran (`was_made`), how long that took, and the artifact's `plan.path`.

    >>> from replaycad.engine.builder import Builder
    >>> settings = {"compress.num_steps": 10, "replay.num_images": 8, "train.detector": "patchcore"}
    >>> builder = Builder.of("data", "artifacts", settings)

Masks and conditions of a class:

    >>> from replaycad.artifacts.conditions import ConditionsArtifact
    >>> made = builder.build(CompressStage(builder, "disc"))  # makes the masks first
    >>> ConditionsArtifact.load(made.plan.path).semantic_embedding.shape
    (64, 192)

Replays, read a few at a time, however many there are:

    >>> from replaycad.artifacts.replays import ReplaysReader
    >>> replays = ReplaysReader(builder.build(ReplayStage(builder, "disc")).plan.path)
    >>> print(len(replays), replays.images([0, 1, 2]).shape)  # RGB, uint8
    8 (3, 3, 128, 128)

A detector of a new class beside the replays of an old one, and its figures on test images:

    >>> trained = builder.build(TrainStage(builder, ["plate"], ["disc"], "plate"))
    >>> from replaycad.artifacts.scores import ScoresArtifact
    >>> scores = ScoresArtifact.load(builder.build(EvalStage(builder, ["disc", "plate"], "plate")).plan.path)
    >>> sorted(scores.metrics["mean"]), scores.image_scores.shape
    (['aupro30', 'f1_max', 'image_auroc', 'pixel_ap', 'pixel_auroc'], (8,))

Verdicts on images, as arrays; a score of 1 is the threshold:

    >>> from replaycad.inference.predict import load_predictor
    >>> import numpy as np, torch
    >>> predictor = load_predictor(builder.store, "plate", "", torch.device("cpu"))
    >>> image_scores, anomaly_maps = predictor(np.zeros((2, 128, 128, 3), np.uint8))
    >>> image_scores.shape, anomaly_maps.shape
    ((2,), (2, 128, 128))

A comparison, as `replaycad run`; what was made above is not made again:

    >>> from replaycad.experiments import plan as sequence
    >>> from replaycad.experiments import run as walk
    >>> cells = sequence.comparison(["disc", "plate"], ["finetune", "replay"])
    >>> found = walk.run_sequence(builder, cells, "run")["document"]["strategies"]
    >>> 0 <= found["replay"]["image_auroc"]["mean_past"] <= 1
    True
"""
