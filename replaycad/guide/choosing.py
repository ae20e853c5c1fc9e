"""Choosing: generator, detector and encoder; what each costs, what it gives, under which licence.

Begin with the defaults, which come with the package: `mini` for masks, generator and encoder. They
need two cores and 2 GB. Then, in this order:

1. Another detector costs a minute: `--detector patchcore` remembers patches, learns in seconds, and
   was the best with the bundled encoder and with ImageNet features (table below). Prefer InvAD or
   Dinomaly where one file of a few MB must serve for all classes, for a memory bank grows.
2. A larger encoder gives more than a larger detector: `--encoder resnet34.bt_in1k`, or
   `--encoder resnet18:FILE` for weights of your own. On a GPU `--set train.preset=full`.
3. A larger generator, if photos may not be kept and replays must be sharp: `--backbone sd15` on a GPU.
   If some may be kept, `--keep auto --budget 50kB` decides class by class what is best.
4. Where bytes count, `--budget 25kB`: what the bundled generator needs fits in, with no measurable loss.

Generators (`--backbone`)
| name | size | licence of the weights | compress | comes with |
| --- | --- | --- | --- | --- |
| mini | 128 px | Apache-2.0, drawn here | 12 s a class, two cores | the package |
| ldm256 | 256 px | Apache-2.0 | 27 min, `fast` 4; an H200 | `replaycad fetch --backbone ldm256` |
| sd15 | 512 px | CreativeML OpenRAIL-M | 43 min; an H200 | `replaycad fetch --backbone sd15` |

ldm256 is the paper's for MVTec AD, sd15 for VisA; 800 replays of a class by the paper's sampler take 2.5 and 5
minutes on that GPU. Measured with random weights, which take as long (`python -m tests.bench.gpu`).
`--set replay.compile=true` and `train.compile=true` make full-size networks 1.3 times as fast there, after up
to 80 s of compiling.

Detectors (`--detector`), `mini` preset, four real classes at 128 px learned jointly, image AUROC / pixel
AP; bundled encoder, then a ResNet-18 with ImageNet weights; two cores
| detector | trained | million numbers | train s | bundled | ImageNet | paper |
| --- | --- | --- | --- | --- | --- | --- |
| patchcore | by storing | 6.16 | 22 | 86.9 / 24.4 | 89.6 / 29.0 | Roth 2022 |
| invad | by steps | 0.82 | 69 | 76.4 / 21.7 | 80.4 / 24.9 | Zhang 2024; the paper's own |
| dinomaly | by steps | 0.64 | 96 | 78.8 / 19.3 | 78.1 / 23.7 | Guo 2025 |
| mambaad | by steps | 0.78 | 227 | 78.4 / 22.3 | 78.2 / 23.5 | He 2024 |
| rlr | by steps | 1.26 | 84 | 69.5 / 17.9 | 72.8 / 19.0 | He 2024 |
| uniad | by steps | 0.85 | 146 | 62.6 / 14.7 | 61.5 / 15.2 | You 2022 |
| simplenet | by steps | 0.25 | 58 | 76.4 / 14.3 | 65.8 / 14.8 | Liu 2023 |
| dne | both | 0.49 | - | judges images alone | | Li 2022 |

One image of 256 px, ResNet-18 features, a bank of 8,000 patches, two cores, median of 15 pairs: 62 ms, 1.33
times as fast as anomalib 2.7's PatchCore (1.19 to 1.62), eight images at once 1.22 times
(`python -m tests.bench.latency FILE`).

All are written anew here under Apache-2.0. The presets `full` and `lite` are the papers' sizes;
`--detector invad,invad-lite` names a preset with its detector, and compares the two in one run.

Encoders (`--encoder`), as timm states the licences: wide_resnet50_2.racm_in1k, resnet34.bt_in1k,
EfficientNet, ViT and DINOv2 Apache-2.0, wide_resnet50_2.tv_in1k BSD-3-Clause. Most learned from ImageNet,
whose terms are for research; whether that reaches the weights is disputed. `mini` has seen procedural
drawings alone. `replaycad fetch --encoder NAME` brings one.

Segmenters (`--segmenter`): mini with the package; vit_b, vit_l, vit_h of Segment Anything, Apache-2.0;
`none` for surfaces that fill the image. `replaycad fetch --segmenter NAME` brings one.
"""
