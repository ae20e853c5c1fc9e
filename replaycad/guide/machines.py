"""Machines: several GPUs in one, many in a cluster, and what a sequence of any size would cost.

Several GPUs of one machine: torchrun starts a process for each, and they share the batches of `train`.

    torchrun --nproc-per-node 4 -m replaycad train --class new --past one,two,three

The training takes the steps of one process with the same batch, batch norms included, but for
rounding; noise that a detector adds of its own is drawn by each process. The batch has to divide
among them. Memory banks are not shared. To mask, compress and replay several classes at a time,
use `make -j` or Ray.

A cluster: the stages meet in files alone, so any scheduler will do. Two commands on one class of
one folder do not both work: the second waits and takes what the first has made. As a Slurm array:

    #!/bin/bash
    #SBATCH --array=0-14 --gres=gpu:1 --time=8:00:00
    CLASSES=(bottle cable capsule carpet grid hazelnut leather metal_nut
             pill screw tile toothbrush transistor wood zipper)
    export REPLAYCAD_DATA=/data/mvtec REPLAYCAD_STORE=/shared/artifacts
    replaycad compress --recipe paper --class ${CLASSES[$SLURM_ARRAY_TASK_ID]}
    replaycad replay --recipe paper --class ${CLASSES[$SLURM_ARRAY_TASK_ID]}

and then, with `--dependency=afterok:JOB`, `replaycad train`. As Snakemake rules:

    CLASSES = ["bottle", "grid", "screw"]
    rule detector:
        input: expand("artifacts/replays/{name}.safetensors", name=CLASSES[:-1])
        output: "artifacts/detectors/screw.safetensors"
        shell: "replaycad train --class screw --past bottle,grid"
    rule conditions:
        output: "artifacts/conditions/{name}.safetensors"
        shell: "replaycad compress --class {wildcards.name}"
    rule replays:
        input: "artifacts/conditions/{name}.safetensors"
        output: "artifacts/replays/{name}.safetensors"
        shell: "replaycad replay --class {wildcards.name}"

A Ray cluster (`pip install replaycad[ray]` on every node) walks a whole comparison as tasks, each
started when what it reads is there, and done again if its node is lost:

    RAY_ADDRESS=auto replaycad run --ray --strategy finetune,replay,joint --store /shared/store

Every node needs the same `--data` and `--store`; without RAY_ADDRESS Ray starts on this machine.

A store is a folder. Where the artifacts live in a bucket, mount it, or sync the folder before and
after a command with `aws s3 sync` or rclone.

A killed command goes on from its checkpoint when it is typed again; on another machine too, if the
store is a shared folder.

What if something breaks? Nothing is written of an image or artifact that changed while it was read,
and a file that was damaged is never read: headers carry their digest, and every byte of what a
stage reads is verified. The error names the file to remove; the same command then makes it again.

How much would a thousand classes cost? With units measured on two CPU cores (bundled models, 300 images
of a class, 10 million replays in all), 2.5 dollars per hour and device:

    trainings        devices   hours in all   last class, hours   stored   dollars
    after each class       1          7,359               14.59   512 GB    18,399
                           8          1,017                2.10   512 GB    20,332
                          64            127                0.35   512 GB    20,332
    one at the end         1            115               14.59   512 GB       287
                          64           1.85                0.35   512 GB       291

What has to change at that size: nearly all of it is reading replays anew in every training, so the
cost grows with the square of the classes. `--set train.replay_budget=34200` reads for as long as the last
training learns; one training at the end (`--strategy final`) is what the authors ran. A memory bank
of a fixed size holds ever less of each class: `--set preset=full`, or a detector with weights.
"""
