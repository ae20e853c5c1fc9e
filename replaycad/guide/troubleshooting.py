"""Troubleshooting: what commands say when they refuse, and what to do then.

Every foreseen failure is one line, `error: WHAT (WHAT TO DO)`, with exit code 1; nothing that was
there before is lost by it. Exit code 2: an option was mistyped. 130: interrupted, type it again.

`no class is named`, `no class found in ...`, `there is no class '...' in ...`
    `--class` names a folder below `--data`. `replaycad doctor --data data` lists what it sees there.

`segmenter '...' needs ...`, `backbone '...' lacks ...`, `encoder '...' ...`
    Weights of the full-size models are fetched once, by the command in the message, or all that a
    recipe reads by `replaycad fetch --recipe paper`. The recipe `mini`, which is the default, needs
    none of them. `replaycad doctor` lists what is there.

`... cannot be reached`, `... may not be asked, as HF_HUB_OFFLINE is set`, `... answered with a web page`
    The machine has no way to the place, or a proxy stands between. `replaycad fetch --recipe paper
    --dry-run` lists every file with its address: bring them to FOLDER, those of the hub as
    FOLDER/OWNER/MODEL/PATH, checkpoints of Segment Anything as FOLDER/sam_vit_*.pth, and type
    `replaycad fetch --recipe paper --from FOLDER`. `HF_ENDPOINT` and `REPLAYCAD_SAM_URL` name mirrors,
    `HF_HOME` and `REPLAYCAD_WEIGHTS` the folders in which all of it is kept.

`... is damaged or not the published file: its digest should begin with ...`, `fetch the files again`
    Run `replaycad fetch` again: it checks every file against its digest, removes a damaged one,
    brings it anew and goes on where it was interrupted.

`a budget of ... bytes is too small for any form`, `... bytes do not hold the tokens of ...`
    Give `--budget` more, or `--keep exemplars`, which starts at the size of one small photo.

`Killed`, or out of memory, while `compress` runs
    `--dry-run` says beforehand what a stage will take.
    `--batch-size` smaller, `--set compress.pass_size=4` for the same result in less memory,
    `--set compress.gradient_checkpointing=on` for less still, at a third more time.

`the loss became ... at step ...`
    `--set train.learning_rate=...`, a third of what it was. The last good checkpoint is kept.

`... was trained with another encoder than ...`, `detector '...' was trained with another ...`
    `--init` goes on only from a detector of the same kind. Leave it out to start from scratch.

`... was made with another backbone: expected ...`
    Conditions speak to one frozen model. Compress the class again with the one you have.

`stale`, said by `--dry-run`
    Something that the artifact was made from has changed since; it says what. The next command
    makes it again. `--force` makes it again in any case, with the same bytes if nothing changed.

`masks by '...' are not of one thing`
    The rule that the class's name asks for gave masks that differ too much from image to image (a
    screw on a perforated ground); the next rule that proved itself is taken. A rule that you set
    yourself is kept, and the note is a warning.

Masks are wrong (`replaycad inspect`: area near 0 or 1)
    Light objects on light ground deceive the bundled segmenter: `--segmenter vit_h`, or
    `--segmenter none` for surfaces that fill the image, or set a rule: `--set mask.rule=ground`
    learns the ground from the borders of all images, `area` takes the mask that comes back in all.

Replays look blurred
    The bundled generator has seen drawings alone and is small. `--backbone sd15` on a GPU draws sharp
    images; or `--keep exemplars` or `auto` if photos may be kept.

Every photo of the line is called anomalous
    Camera, light or crop differ from those of the training photos: train on photos of the line. Or
    the class was replayed for a memory bank, which finds real photos unlike drawn ones (19 of 20
    bottles above the threshold that their replays set; with InvAD 3 of 20), though it still ranks
    defects above them. Use InvAD, keep exemplars, or set your own limit from some normal photos.

Nothing is called anomalous, or only in one class
    The threshold over all classes is that of the class with the highest scores (of the defects of
    a grid it found 1 in 5 beside a bottle, its own threshold 3 in 5): `predict --class NAME`.

Two commands at once on one store
    They may. On the same class the second waits and takes what the first has made; files are
    written whole or not at all.

`... was replaced by another command, with other settings`
    Two commands wanted two things of one name, such as a class with two seeds. Give each its own
    `--store`, or have one `run` do both (`--seeds 0,1` gives each seed names of its own).

`... changed while ... was made from it; nothing was written`
    An image was replaced while it was read. Type the command again.

`expected content_id ..., found ...`
    A file was damaged after it was written. Remove it, as the line says, and type the command again.

It is slow
    `OMP_NUM_THREADS` above the number of real cores, or two commands on all cores, cost a factor of
    five: give each its own cores. `--device cuda` where there is one. `help choosing` has times.
"""
