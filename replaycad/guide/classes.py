"""Classes over time: adding the sixteenth, moving one elsewhere, dropping one, what is kept.

Adding class 16. The fifteen others are there as `artifacts/conditions/NAME.safetensors`; their
photos are not needed:

    replaycad compress --class sixteenth
    replaycad train --class sixteenth --past one,two,...,fifteenth --name line

Replays that are missing are drawn first, those that are there are not drawn again. `train` starts
from scratch and sees all classes alike often (`train.balance`), so the fifteen do not lose to the
new one. It takes as long as a training on sixteen classes: with detectors that are trained by steps
the number of steps is fixed (`--set train.num_steps=...`), a memory bank grows with each class.
`replaycad eval --class all --name line` then measures what there are test images for.

Moving a class. One file is all: copy `artifacts/conditions/bottle.safetensors` to the same place on
the other machine and run `replaycad replay --class bottle` there. It holds no path, no user and no
time; `replaycad inspect FILE --verify` checks that it arrived whole. The model that draws must be
the same: its digest stands in the file, and another is refused.

Two factories that each know some classes exchange conditions, not photos, and each trains on both.

Compressing on a GPU, training at the line: the stages meet in files only, so run `compress` where
the GPU is. `replay` gives the same images on any machine of the same kind; between a GPU and a CPU
they differ by rounding.

Photos of a class that changed (a new supplier, another lamp): run `compress` again; everything
made from it is stale then, says so with `--dry-run`, and is made anew by the next `train`.

Dropping a class: leave it out of `--past`.

What may be kept. `--keep conditions` keeps no photo. `replaycad inspect FILE --audit --data data`
says whether any replay comes as near to a photo as to be a copy of it. `--keep exemplars` keeps
some photos as AVIF, which for memory banks is worth more byte for byte; `--keep auto` tries.
"""
