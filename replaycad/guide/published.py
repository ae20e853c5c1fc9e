"""Published figures beside ours: what was claimed elsewhere, what was measured here, and how.

One class per step, image AUROC / pixel AP. Figures for MVTec AD and VisA are quoted from the papers,
none was measured with this program: the data and the full-size weights were not at hand. Ours are
those of four real classes at 128 px with the bundled models (README, Numbers), a harder and smaller
exercise: compare rows within a column, not columns.

| system | MVTec AD, quoted | VisA, quoted | four classes, here | `--strategy` |
| --- | --- | --- | --- | --- |
| fine-tuned InvAD | 66.8 / 21.5 | 67.5 / 9.8 | 67.3 / 17.5 | finetune |
| fine-tuned PatchCore | 60.7 / 20.9 | 57.6 / 10.3 | 67.5 / 17.0 | finetune, detector patchcore |
| SimpleNet and EWC; here InvAD | 69.0 / 21.6 | 59.6 / 9.0 | 65.0 / 17.0 | ewc |
| SimpleNet and MAS; here InvAD | 70.3 / 25.4 | 60.6 / 9.3 | 65.2 / 18.9 | mas |
| IUF (ECCV 2024) | 76.2 / 17.1 | 68.1 / 3.4 | not built | |
| CDAD (CVPR 2025) | 74.3 / 28.0 | 62.8 / 8.3 | not built | |
| DNE (MM 2022) | 87.6 / - | 60.1 / - | 57.6 / - | dne |
| UCAD (AAAI 2024; epoch chosen on the test set) | 93.0 / 45.6 | 87.4 / 30.0 | 76.2 / 20.4 | ucad, without prompts |
| ReplayCAD, InvAD | 94.8 / 53.7 | 90.3 / 41.5 | 73.4 / 21.2 | replay |
| ReplayCAD, PatchCore | 93.7 / 54.7 | | 80.2 / 22.0 | replay, detector patchcore |
| a coreset of fixed size (CADIC) | 97.2 / ? | 89.1 / ? | 85.1 / 23.7 | features |
| real images in the same bytes, InvAD | | | 75.1 / 22.0 | exemplars |
| real images in the same bytes, PatchCore | | | 84.9 / 24.0 | exemplars, detector patchcore |
| joint training, InvAD | 98.9 / 57.6 | 95.5 / 43.1 | 76.5 / 22.1 | joint |

The commands: `replaycad run --class bottle,grid,magnetic_tile,screw --strategy finetune,replay,joint`
with `--detector` and `--seeds`. On MVTec AD and VisA, with a GPU and the weights that
`replaycad fetch --recipe paper` brings: `make mvtec DATA=FOLDER` and `make visa DATA=FOLDER` for the
paper's one setting per data set, `RECIPE=release` for the authors' values class by class,
`STRATEGY=replay,joint` to learn step by step, which the authors did not.

Three differences of protocol matter when figures are held against each other. The authors train
once, on replays of all classes but the last; here each step trains (`final` is their way). Their
forgetting is joint training minus replay, which is `joint_gap` here; `fm` is the best earlier score
minus the last. UCAD reports the epoch that was best on the test images; here it is the last step.
"""
