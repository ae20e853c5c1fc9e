"""A first hour: from a folder of photos to heat maps, with nothing but the bundled models.

1. Put the normal photos of each product into a folder of its own:

       data/bottle/photo 1.jpg ...        or, if there are defects to test on, as MVTec AD does:
       data/bottle/train/good/*.png       data/bottle/test/good/*.png
       data/bottle/test/scratch/*.png     data/bottle/ground_truth/scratch/*_mask.png

   Any size, any names, JPEG, PNG, BMP, TIFF or WebP; 50 to 300 normal photos of a product that lies
   under the same camera and light. A photo with a defect among them teaches that the defect is normal.

2. `replaycad doctor --data data` says what it found there and what to do about it.

3. `replaycad mask --class bottle`, then `replaycad inspect artifacts/masks/bottle.safetensors`: the
   share of the image that the object takes should be about what you see. Masks need not be exact.

4. `replaycad compress --class bottle` and `replaycad replay --class bottle`, a quarter of a minute each.
   From here on the photos of `bottle` are no longer needed.

5. When the next product comes: `replaycad train --class screw --past bottle`. Its detector, called
   `screw`, knows both. With one product alone: `replaycad train --class bottle`.

6. `replaycad predict NEW_PHOTOS --name screw --out heatmaps`: a line and a picture for each photo. A
   score of 1 is the threshold, which 1 % of the normal training photos exceed. `--class bottle` takes
   the threshold of that class alone, which is sharper where the line knows what it makes. The
   threshold of a class that the detector knows from replays is that of its replays: let `predict`
   judge some normal photos of it, and set your own limit above what they score.

7. Are there labelled test photos? `replaycad eval --class bottle,screw --name screw` gives AUROC and AP.
   `replaycad run --class bottle,screw --strategy finetune,replay,joint` does all of this at once and
   says how much is forgotten: `finetune` keeps nothing, `joint` keeps every photo, `replay` lies between
   them. It writes `artifacts/results/run.html` to look at.

Next: `replaycad help choosing` for better detectors, `replaycad help classes` for the sixteenth
product, `replaycad help troubleshooting` where a command refuses.
"""
